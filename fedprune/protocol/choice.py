"""What the server and clients do alike: evidence to score with, and from scores to a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedprune.config import RunConfig
from fedprune.randomness import derive, generator
from fedprune.scores.score import Evidence
from fedprune.selection.ranking import Unreachable
from fedprune.selection.select import above, select
from fedprune.structure.layout import Layout
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


def evidence_about(
    held: tuple[Tensors, Masks, int],
    names: Sequence[str],
    config: RunConfig,
    layout: Layout,
    **seen: Any,
) -> Evidence:
    """What is scored with, server or client: the weights held, and numbers that both draw.

    Args:
        held: weights and masks, and the round they are of.
        names: the tensors to score.
        config: complete configuration.
        layout: the model's layout.
        seen: the further attributes of `Evidence`.
    """
    weights, masks, round_ = held
    return Evidence(
        weights={n: weights[n] for n in names},
        masks={n: masks[n] for n in names},
        layout=layout,
        generator=generator(config.seed, "score", round_),
        seed=derive(config.seed, "score", round_),
        probes=config.probes or 0,
        unit=config.unit,
        **seen,
    )


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
        ValueError: what `fedprune.selection.select.select` refuses.
    """
    c = config
    if layout.origin is not None:
        whole = [layout.in_origin(t) for t in (scores, alive, weights)]
        masks = chosen(whole[0], wanted, c, layout.origin.layout, whole[1], whole[2])
        return layout.from_origin(masks)
    magnitude = {name: w.abs() for name, w in weights.items()}
    if wanted.sparsity is None:
        assert c.threshold is not None  # the configuration has one or the other
        return above(scores, c.threshold, alive=alive, magnitude=magnitude, floor=c.floor)
    sparsity = _of_what_is_left(wanted.sparsity, scores, layout)
    if c.reduce:  # which may have taken out more than the schedule asks for by now
        gone = sum(int((~alive[name]).sum()) for name in scores)
        sparsity = max(sparsity, gone / sum(score.numel() for score in scores.values()))

    def at(share: float) -> Masks:
        return select(
            scores,
            share,
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

    try:
        return at(sparsity)
    except Unreachable as error:
        least = error.nearest / error.size
        # On the way, and to a target, there is no number to meet: caps may take more than it asks.
        if least < sparsity or (wanted.progress == 1.0 and c.sparsity is not None):
            raise
        return at(least)


def _of_what_is_left(sparsity: float, scores: Tensors, layout: Layout) -> float:
    """A fraction of the dense model's weights as one of these, where factors took their place."""
    if layout.dense is None or scores.keys() != set(layout.prunable):
        return sparsity
    here = sum(score.numel() for score in scores.values())
    return max(0.0, 1.0 - (1.0 - sparsity) * layout.whole / here)
