"""Options of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fedprune.options.conditions import Not
from fedprune.options.option import option
from fedprune.options.section import Section

_ON = {"adapters": Not("none")}


class Adapting(Section):
    """What is trained beside frozen weights."""

    adapters: Literal["none", "lora"] = option(
        "adapters",
        "lora: freeze and prune the weights, and train and send low-rank factors only: W∘M + "
        "lora-alpha/rank · (BA)∘M",
        "none",
    )
    rank: int | None = option(
        "adapters",
        "rank of the factors (default: 8, or the largest of --ranks)",
        when=_ON,
        derived=lambda c: max(c.ranks, default=8),
        ge=1,
        le=10**5,
    )
    ranks: tuple[int, ...] = option(
        "adapters",
        "ranks of the clients' own factors: client k has entry k modulo their number (with "
        "--budget: the one that fits its device)",
        (),
        when=_ON,
        strict=False,
    )
    adapter_mean: Literal["factors", "products", "stack"] | None = option(
        "adapters",
        "factors: mean of A and mean of B; products: mean of BA, by its largest singular values "
        "(FlexLoRA); stack: all factors side by side (FLoRA) (default: factors, with --ranks "
        "products)",
        when=_ON,
        derived=lambda c: "products" if c.ranks else "factors",
    )
    lora_alpha: float | None = option(
        "adapters",
        "scale of the factors' product, divided by the rank (default: twice the rank)",
        when=_ON,
        derived=lambda c: 2.0 * (c.rank or 0),
        gt=0,
    )
    targets: tuple[str, ...] = option(
        "adapters",
        "layers that get factors: last parts of their names, or regular expressions of whole "
        "names (default: attention and feed-forward projections; of other models all prunable "
        "linear layers)",
        (),
        when=_ON,
        strict=False,
    )
    adapter_base: Literal["float32", "int8", "int4"] = option(
        "adapters",
        "frozen weights of layers with factors: float32, or rounded before round one to codes "
        "of 8 or 4 bits in groups of 64 inputs; clients restore one layer at a time",
        "float32",
        when=_ON,
    )


def rank_of(adapting: Any, partition: int, tiers: Sequence[int] = ()) -> int:
    """The rank of a client's own factors: the one in turn, or that which `tiers` say it has."""
    ranks = adapting.ranks or (adapting.rank,)
    return int(ranks[tiers[partition] if tiers else partition % len(ranks)])


def adapter_scale(adapting: Any) -> float:
    """The factor of the product BA."""
    return float(adapting.lora_alpha) / int(adapting.rank)
