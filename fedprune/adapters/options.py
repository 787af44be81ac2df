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
        "lora: the weights are frozen and pruned, and of the clients' training only low-rank "
        "factors are sent, W∘M + lora-alpha/rank · (BA)∘M",
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
        "ranks of the clients' own factors: client k has the one at k modulo their number "
        "(with --budget: the one that its device has room for)",
        (),
        when=_ON,
        strict=False,
    )
    adapter_mean: Literal["factors", "products", "stack"] | None = option(
        "adapters",
        "how clients' factors become one: the mean of A and that of B; the mean of BA, by its "
        "largest singular values (FlexLoRA); all of them side by side (FLoRA) (default: factors, "
        "with --ranks products)",
        when=_ON,
        derived=lambda c: "products" if c.ranks else "factors",
    )
    lora_alpha: float | None = option(
        "adapters",
        "the factors' product is added times this over the rank (default: twice the rank)",
        when=_ON,
        derived=lambda c: 2.0 * (c.rank or 0),
        gt=0,
    )
    targets: tuple[str, ...] = option(
        "adapters",
        "layers that get factors: last parts of their paths, or regular expressions of whole paths "
        "(default: the projections of attention and feed-forward layers; of other models every "
        "linear layer that is prunable)",
        (),
        when=_ON,
        strict=False,
    )
    adapter_base: Literal["float32", "int8", "int4"] = option(
        "adapters",
        "the frozen weights of layers with factors: as they are, or rounded before round one to "
        "codes of 8 or 4 bits, in groups of 64 inputs, of which clients restore a layer's weight "
        "while it computes",
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
