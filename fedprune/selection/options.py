"""Options of which weights go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from fedprune.options.conditions import Not
from fedprune.options.name_table import NameTable
from fedprune.options.option import BY_TASK, Count, option
from fedprune.options.section import Section

AMOUNTS = ("sparsity", "threshold", "target_bytes", "target_flops")
"""Four ways to say how much goes."""

_ADAPTIVE = {"schedule": "adaptive"}

_SHAPES = {"n:m": (2, 4), "block": (4, 1)}
"""Units that have a shape, with the one they have by default."""

_WHOLE = ("head", "neuron", "head-neuron", "channel", "expert", "sublayer", "layer")
"""Units that can be taken out of a model."""


def _sparsity(c: Any) -> float | None:
    """What a pattern removes, nothing further of a run that goes on from another, else 0.8."""
    if any(getattr(c, key) is not None for key in AMOUNTS[1:]):
        return None
    if c.init:
        return 0.0
    n, m = c.unit_shape if c.unit == "n:m" else (0, 0)
    return 1.0 - n / m if 1 <= n < m else 0.8


def _scope(c: Any) -> str:
    alone = c.schedule == "adaptive" and c.adaptive == "layer"
    return "layer" if alone else c.usual("scope", "global") if c.unit != "n:m" else "global"


def _warmup(c: Any) -> int:
    """The task's, of as many rounds as there are."""
    return int(c.usual("warmup") * c.rounds // c.usual("rounds"))


def _end(c: Any) -> int:
    """Two thirds of the way from the warm-up."""
    return int(
        c.warmup + (1 if c.schedule == "one-shot" else max(1, (c.rounds - c.warmup) * 2 // 3))
    )


def followed_method(c: Any) -> str:
    """The method that other options ask for."""
    if c.masks != "global":
        return "own-masks"
    if c.score_during == "tune":
        return "while-tuning"
    return str(c.schedule) if c.schedule in ("regrow", "adaptive") else "global"


def _as_in_a_file(values: dict[str, Any]) -> dict[str, Any]:
    """Values as a configuration file has them: lists in place of tuples."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


class Pruning(Section):
    """Which weights go, how many, when."""

    sparsity: float | None = option(
        "pruning",
        "fraction of prunable weights removed (default 0.8)",
        derived=_sparsity,
        ge=0,
        lt=1,
    )
    threshold: float | None = option(
        "pruning", "remove weights whose score is at or below this, instead of a fraction", None
    )
    target_bytes: int | None = option(
        "pruning", "prune until model.fedprune has at most this many bytes", None, ge=1
    )
    target_flops: float | None = option(
        "pruning", "prune until this part of the FLOPs of prunable layers is left", None, gt=0, lt=1
    )
    method: str | None = option(
        "pruning",
        "how masks are decided and changes averaged (default: follows from --schedule, --masks "
        "and --score-during; see --list method)",
        derived=followed_method,
    )
    method_options: Annotated[dict[str, Any], AfterValidator(_as_in_a_file)] = option(
        "pruning",
        "an option of the method and its value, such as tiers 1,0.5; give the flag once for "
        "each option",
        {},
    )
    scope: str = option(
        "pruning",
        "which weights compete with each other",
        "global",
        derived=_scope,
        names=NameTable("fedprune.selection.scopes", "SCOPES"),
    )
    layers: dict[str, float] = option(
        "pruning",
        "density by shell pattern over names; the last pattern that matches counts",
        {},
        when={"scope": "patterns"},
    )
    unit: str = option(
        "pruning",
        "what is removed together",
        "weight",
        names=NameTable("fedprune.selection.units", "UNITS"),
    )
    unit_shape: tuple[int, int] | None = option(
        "pruning",
        "N,M of n:m (N are kept; default 2,4), or rows,columns of a block (default 4,1)",
        when={"unit": tuple(_SHAPES)},
        derived=lambda c: _SHAPES[c.unit],
        strict=False,
    )
    structure: str = option(
        "pruning",
        "how channels are found",
        "auto",
        when={"unit": "channel"},
        names=NameTable("fedprune.structure.channels.groups", "STRUCTURES"),
    )
    pool: str | None = option(
        "pruning",
        "how a unit's score is made from the scores of its weights",
        "mean",
        when={"unit": Not(("weight", "n:m"))},
        names=NameTable("fedprune.selection.pools", "POOLS"),
    )
    min_density: float = option("pruning", "smallest density of any tensor", 0.0, ge=0, lt=1)
    max_density: float = option("pruning", "largest density of any tensor", 1.0, gt=0, le=1)
    schedule: str = option(
        "pruning",
        "how sparsity grows over rounds (default cubic)",
        derived=lambda c: c.usual("schedule", "cubic" if c.threshold is None else "one-shot"),
        names=NameTable("fedprune.selection.schedules", "SCHEDULES", "schedules_of"),
    )
    warmup: int = option(
        "pruning", "dense rounds before the first pruning", BY_TASK, derived=_warmup, ge=0
    )
    end: Count = option(
        "pruning",
        "last round that prunes (default: two thirds of the rounds after the warm-up)",
        derived=_end,
    )
    frequency: Count = option("pruning", "rounds from one pruning to the next", 1)
    tolerance: float | None = option(
        "pruning",
        "largest part by which the validation loss may rise at a pruning",
        0.02,
        when=_ADAPTIVE,
        ge=0,
        le=10,
    )
    candidates: int | None = option(
        "pruning", "sparsities tried in one question", 4, when=_ADAPTIVE, ge=2, le=64
    )
    adaptive: str | None = option(
        "pruning",
        "whether one sparsity is chosen, or one for each layer",
        "global",
        when=_ADAPTIVE,
        names=NameTable("fedprune.selection.ladder", "ADAPTIVE"),
    )
    floor: int = option("pruning", "fewest weights kept in any tensor", 1, ge=0)
    exclude: tuple[str, ...] = option(
        "pruning", "shell patterns of parameters that are never pruned", (), strict=False
    )
    include: tuple[str, ...] = option(
        "pruning", "shell patterns of parameters to prune that by default are not", (), strict=False
    )
    regrow: float | None = option(
        "pruning",
        "part of the kept weights that is exchanged at first",
        0.3,
        when={"schedule": "regrow"},
        gt=0,
        le=1,
    )
    rewind: int | None = option(
        "pruning",
        "round to whose weights the kept weights are set back at each pruning (0: the initial "
        "ones)",
        when={"sparsity": Not(0.0)},
        ge=0,
    )
    vocabulary: Literal["full", "used"] = option(
        "pruning",
        "used: before round one, remove tokens that no client uses from embeddings and head",
        "full",
    )
    shrink: Literal["never", "end", "every"] = option(
        "pruning",
        "when to take heads, neurons, channels and sub-layers that masks emptied out of the "
        "model (default: end, where --unit is one of these, without --stream on)",
        "never",
        when=({"sparsity": Not(0.0)}, {"init": Not("")}),
        derived=lambda c: "end" if c.unit in _WHOLE and c.stream != "on" else "never",
    )
