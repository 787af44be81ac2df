"""The arms of a run: what each is, as a configuration beside that of the run itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.config import RunConfig, with_values
from fedprune.config.options import CENTRAL, LOCAL, SMALL, Results
from fedprune.options.refusal import ConfigError
from fedprune.selection.options import followed_method
from fedprune.selection.scopes import scopes_of
from fedprune.selection.units import unit_labels
from fedprune.structure.layout import Layout

PRUNED = "pruned"

_ASKS_NOBODY = {
    "combine": "sum",
    "normalise": "none",
    "masks": "global",
    "average": None,
    "score_during": "pass",
    "score_wire": "fp32",
    "calibration": "dense",
}

_OF_A_FEDERATION: dict[str, Any] = {
    **{"cohort": 1, "min_clients": 1, "sampling": "fixed", "selector": "uniform", "batched": 1},
    **{"robust": "none", "byzantine": None, "strikes": None, "newcomers": 0, "panel": 0},
    **{
        "measure_cohort": 0,
        "profiles": "",
        "over_select": 1.0,
        "budget": "none",
        "deadline": None,
        "client_percentiles": False,
    },
}
"""What means nothing, or something else, for one client by itself."""


def arm_names(config: Results) -> list[str]:
    """The names of the arms in the order in which they are played."""
    return [PRUNED, *config.baselines]


def arms_of(config: RunConfig, layout: Layout) -> dict[str, RunConfig]:
    """The pruned arm first, then a baseline per name: same seed, rounds and data.

    That of `CENTRAL` lacks how many steps its one client takes, which the pruned arm decides
    (`fedprune.records.pooled`).

    Raises:
        ConfigError: the model has no units for a smaller dense one.
    """
    # Nothing follows from these: a dense arm keeps the plan of a run that prunes.
    amounts = dict.fromkeys(("threshold", "target_bytes", "target_flops"))
    changes: dict[str, Mapping[str, Any]] = {
        "dense": {**amounts, "sparsity": 0.0, "reduce": ()},
        "random": {"score": "random"} | _ASKS_NOBODY,
        "magnitude": {"score": "magnitude"} | _ASKS_NOBODY,
        # Frankle et al. 2020, arXiv 1912.05671: back to an early round, here that of the last
        # weights that all arms share.
        "lottery": {"score": "magnitude", "rewind": config.warmup} | _ASKS_NOBODY,
    }

    def arm(name: str) -> RunConfig:
        if name in (LOCAL, CENTRAL):
            return with_values(config, _OF_A_FEDERATION)
        found = _small(layout) if name == SMALL else changes[name]
        changed = with_values(config, {**found, "method_options": {}})
        return with_values(changed, {"method": followed_method(changed)})

    return {PRUNED: config} | {name: arm(name) for name in config.baselines}


def _small(layout: Layout) -> dict[str, Any]:
    """A dense model of the pruned size: units drawn at random are cut out before round one trains.

    What is left is a narrower model of the same family, with weights that are as they were drawn
    for the whole one. Units are whole, so it is at most as small as asked for.
    """
    unit = next((u for u in ("head-neuron", "channel") if _has(layout, u)), None)
    if unit is None:
        raise ConfigError(
            f"baselines={SMALL!r}: no heads, neurons or channels were recognised in this model; "
            "allowed: other baselines"
        )
    evenly = "layer" if "layer" in scopes_of(unit) else "global"
    return {
        **_ASKS_NOBODY,
        **{"score": "random", "unit": unit, "unit_shape": None, "scope": evenly, "layers": {}},
        **{"schedule": "one-shot", "warmup": 0, "end": 1, "score_steps": 1, "rewind": None},
        **{"min_density": 0.0, "max_density": 1.0, "reduce": (), "reconstruct": None},
        **{"shrink": "every", "lr_rewind": False},
    }


def _has(layout: Layout, unit: str) -> bool:
    try:
        unit_labels(layout, unit)
    except ValueError:
        return False
    return True
