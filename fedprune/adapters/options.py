"""Options of adapters."""

from __future__ import annotations

from typing import Any, Literal

from fedprune.options.conditions import Not
from fedprune.options.section import Section, option

_ON = {"adapters": Not("none")}


class Adapting(Section):
    """What is trained beside frozen weights."""

    adapters: Literal["none", "lora"] = option(
        "adapters",
        "lora: the weights are frozen and pruned, and of the clients' training only low-rank "
        "factors are sent, W∘M + lora-alpha/rank · (BA)∘M",
        "none",
    )
    rank: int | None = option("adapters", "rank of the factors", 8, when=_ON, ge=1, le=10**5)
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


def adapter_scale(adapting: Any) -> float:
    """The factor of the product BA."""
    return float(adapting.lora_alpha) / int(adapting.rank)
