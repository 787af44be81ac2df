"""What ``--reduce`` takes, what fills itself in beside it, and what does not go with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedprune.options.refusal import Conflict

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig

REDUCTIONS = {
    "dead": "take out units that are read by nobody or never active on any client of the cohort",
    "merge": "add up what reads neurons made by the same weights, and heads that fit into one",
    "share": "one weight for layers whose matrices are equal",
    "low-rank": "two factors for a matrix where they hold fewer numbers",
}

RANK_BY = {
    "activations": "least error on the clients' inputs [SVD-LLM, Wang et al. 2024, 2403.07378]",
    "weights": "least error of the matrix itself, the truncated SVD; asks nobody",
}

_OUT = "leave it out"
_CUT = ("head", "neuron", "channel", "sublayer", "layer")
_RANKS = ("rank_energy", "rank_budget", "rank_tolerance")


def reduction_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The round after the last pruning, and for factors what decides about ranks."""
    chosen = values.get("reduce") or ()
    if not chosen:
        return {}
    out: dict[str, Any] = {}
    if "low-rank" in chosen:
        out["rank_by"] = "activations"
        if all(values.get(key) is None for key in _RANKS):
            out["rank_energy"] = 0.95
    return out


def reduction_round(values: Mapping[str, Any]) -> dict[str, int]:
    """After the last pruning, if a round is left; where nothing is pruned, after the warm-up."""
    if not values.get("reduce"):
        return {}
    if values.get("sparsity") == 0.0:
        return {"reduce_round": values["warmup"] + 1}
    return {"reduce_round": min(values["end"] + 1, values["rounds"])}


def reduction_conflicts(c: RunConfig) -> list[Conflict]:
    """Every possible conflict of a configuration's reductions, with whether it is one."""
    return [*_reductions(c), *_ranks(c)]


def _reductions(c: RunConfig) -> list[Conflict]:
    at, none = c.reduce_round, not c.reduce
    kept = "residuals of --error-feedback are of one shape"
    prunes_later = at is not None and at <= c.end and c.sparsity != 0.0
    after = f"{c.end + 1} to {c.rounds}" if c.end < c.rounds else "a round after --end"
    cuts = "share" in c.reduce and c.unit in _CUT
    return [
        ("reduce", c.error_feedback and bool(c.reduce), kept, _OUT),
        ("reduce-round", at is not None and none, "nothing is reduced", _OUT),
        (
            "reduce-round",
            at is not None and not c.warmup < at <= c.rounds,
            "not between warm-up and the last round",
            f"{c.warmup + 1} to {c.rounds}",
        ),
        ("reduce-round", prunes_later and cuts, "nothing is cut out of shared matrices", after),
        (
            "reduce-round",
            prunes_later and c.rewind is not None,
            "survivors go back to weights of other shapes",
            after,
        ),
        (
            "reduce-round",
            prunes_later and c.schedule == "regrow",
            "what is gone cannot grow back",
            after,
        ),
        (
            "reduce-round",
            prunes_later and c.scope != "global",
            "a layer may have lost more than its share",
            f"{after}, or --scope global",
        ),
        (
            "reduce-within",
            c.reduce_within is not None and not {"merge", "share"} & set(c.reduce),
            "nothing is merged or shared",
            _OUT,
        ),
    ]


def _ranks(c: RunConfig) -> list[Conflict]:
    given = [key.replace("_", "-") for key in _RANKS if vars(c)[key] is not None]
    idle, both = "low-rank" not in c.reduce, f"{' and '.join(given)} exclude each other"
    energy, budget, tolerance = (vars(c)[key] is not None for key in _RANKS)
    return [
        ("rank-by", c.rank_by is not None and idle, "nothing is factored", _OUT),
        ("rank-energy", energy and idle, "nothing is factored", _OUT),
        ("rank-budget", budget and idle, "nothing is factored", _OUT),
        ("rank-tolerance", tolerance and idle, "nothing is factored", _OUT),
        ("rank-energy", energy and len(given) > 1, both, "one of them"),
        ("rank-budget", budget and len(given) > 1, both, "one of them"),
    ]
