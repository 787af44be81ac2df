"""Options of which weights go."""

from __future__ import annotations

from typing import Literal

from fedprune.options.section import BY_TASK, Count, Section, option


class Pruning(Section):
    """Which weights go, how many, when."""

    sparsity: float | None = option(
        "pruning", "fraction of prunable weights removed (default 0.8)", None, ge=0, lt=1
    )
    threshold: float | None = option(
        "pruning", "remove scores at or below this instead of a fraction", None
    )
    target_bytes: int | None = option(
        "pruning",
        "remove what it takes for model.fedprune to have at most so many bytes",
        None,
        ge=1,
    )
    target_flops: float | None = option(
        "pruning",
        "remove what it takes to keep this part of the FLOPs of prunable layers",
        None,
        gt=0,
        lt=1,
    )
    scope: str = option("pruning", "who competes with whom (see --list)", "global")
    layers: dict[str, float] = option(
        "pruning", "density by shell pattern over names, with --scope patterns", {}
    )
    unit: str = option("pruning", "what is removed together (see --list)", "weight")
    unit_shape: tuple[int, int] | None = option(
        "pruning", "N,M of n:m (N kept), or rows,columns of a block", None, strict=False
    )
    structure: str = option(
        "pruning", "how channels are found, with --unit channel (see --list)", "auto"
    )
    pool: str | None = option(
        "pruning", "a unit's score from its weights' (see --list; default mean)", None
    )
    min_density: float = option("pruning", "part of every tensor that stays", 0.0, ge=0, lt=1)
    max_density: float = option("pruning", "part of any tensor that may stay", 1.0, gt=0, le=1)
    schedule: str = option("pruning", "way to the sparsity (see --list; default cubic)", "")
    warmup: int = option("pruning", "dense rounds before the first pruning", BY_TASK, ge=0)
    end: Count = option(
        "pruning", "last round that prunes (default: two thirds of the way from warm-up)", ""
    )
    frequency: Count = option("pruning", "rounds from one pruning to the next", 1)
    tolerance: float | None = option(
        "pruning",
        "part by which --schedule adaptive lets the validation loss rise (default 0.02)",
        None,
        ge=0,
        le=10,
    )
    candidates: int | None = option(
        "pruning", "amounts that --schedule adaptive tries at a time (default 4)", None, ge=2, le=64
    )
    adaptive: str | None = option(
        "pruning", "what an adaptive schedule chooses (see --list; default global)", None
    )
    floor: int = option("pruning", "fewest weights kept in any tensor", 1, ge=0)
    exclude: tuple[str, ...] = option(
        "pruning", "shell patterns of parameters never pruned", (), strict=False
    )
    include: tuple[str, ...] = option(
        "pruning", "shell patterns of parameters pruned against the rule", (), strict=False
    )
    regrow: float | None = option(
        "pruning",
        "part of the kept weights that --schedule regrow exchanges at first (default 0.3)",
        None,
        gt=0,
        le=1,
    )
    rewind: int | None = option(
        "pruning",
        "round whose weights the survivors go back to when pruned (0: the start)",
        None,
        ge=0,
    )
    reconstruct: str | None = option(
        "pruning", "fit what stays, by least squares, after a pruning (see --list)", None
    )
    vocabulary: Literal["full", "used"] = option(
        "pruning",
        "used: before round one, take tokens that no client uses out of embeddings and head",
        "full",
    )
    shrink: Literal["never", "end", "every"] = option(
        "pruning",
        "take heads, neurons, channels, sub-layers that masks emptied out of the model: never, at "
        "the end, after every pruning (default: end, where --unit is one of these)",
        "never",
    )
