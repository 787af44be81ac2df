"""From scores to a mask, as the configuration wants it: the same on the server and on clients."""

from __future__ import annotations

from dataclasses import dataclass

from fedprune.config import RunConfig
from fedprune.pruning.layout import Layout
from fedprune.pruning.selection import above, select
from fedprune.tensors import Masks, Tensors


@dataclass(frozen=True)
class Wanted:
    """How much is to be gone.

    Attributes:
        sparsity: of the tensors that are scored; None: the configuration's threshold decides.
        scope: who competes with whom.
        progress: part of the way that the schedule has come, for densities given by pattern.
    """

    sparsity: float | None
    scope: str
    progress: float = 1.0


def chosen(
    scores: Tensors,
    wanted: Wanted,
    config: RunConfig,
    layout: Layout,
    alive: Masks,
    weights: Tensors,
) -> Masks:
    """The mask that a configuration makes of scores.

    Raises:
        ValueError: what `fedprune.pruning.selection.select` refuses.
    """
    c = config
    magnitude = {name: w.abs() for name, w in weights.items()}
    if wanted.sparsity is None:
        assert c.threshold is not None  # the configuration has one or the other
        return above(scores, c.threshold, alive=alive, magnitude=magnitude, floor=c.floor)
    return select(
        scores,
        wanted.sparsity,
        scope=wanted.scope,
        alive=alive,
        magnitude=magnitude,
        floor=c.floor,
        unit=c.unit,
        unit_shape=c.unit_shape,
        pool=c.pool or "mean",
        layout=layout,
        min_density=c.min_density,
        max_density=c.max_density,
        densities=c.layers or None,
        progress=wanted.progress,
    )
