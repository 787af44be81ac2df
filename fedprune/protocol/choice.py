"""What the server and clients do alike: evidence to score with, and from scores to a mask."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedprune.config import RunConfig
from fedprune.randomness import derive, generator
from fedprune.scores.inputs import with_shared
from fedprune.scores.score import ByBlock, Evidence, Score
from fedprune.selection import cut
from fedprune.selection.apart import apart, select_apart
from fedprune.selection.options import Pruning
from fedprune.selection.ranking import Unreachable
from fedprune.selection.rules import Rules
from fedprune.selection.scopes import SCOPES
from fedprune.selection.select import above, select_by
from fedprune.selection.units import by_position
from fedprune.structure.groups import stages_of
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import some_of
from fedprune.tensors.named import Masks, Tensors, count_kept


@dataclass(frozen=True)
class Wanted:
    """How much is to be gone, and who competes with whom.

    The sparsity is of the tensors that are scored; None: the configuration's threshold decides.
    `progress` is the part of the way that the schedule has come, for densities given by pattern.
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

    `held` are weights and masks, and the round they are of; `seen` further attributes of
    `Evidence`.
    """
    weights, masks, round_ = held
    if "sums" in seen:
        seen["sums"] = with_shared(seen["sums"], layout, names)
    return Evidence(
        weights=some_of(weights, names),
        masks=some_of(masks, names),
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
    if layout.origin is not None:
        whole = [layout.in_origin(t) for t in (scores, alive, weights)]
        masks = chosen(whole[0], wanted, config, layout.origin.layout, whole[1], whole[2])
        return layout.from_origin(masks)
    if wanted.sparsity is None:
        threshold, floor = config.threshold, config.floor
        assert threshold is not None  # the configuration has one or the other
        return above(scores, threshold, alive=alive, magnitude=weights, floor=floor)

    def at(share: float) -> Masks:
        rules = rules_of(wanted, config)
        return select_by(rules, scores, share, alive=alive, magnitude=weights, layout=layout)

    return _reached(at, wanted, config, layout, alive)


def chosen_apart(
    score_of: Callable[[str], Tensor],
    wanted: Wanted,
    config: RunConfig,
    layout: Layout,
    alive: Masks,
    weights: Tensors,
    names: Container[str] | None = None,
) -> Masks:
    """The same, one tensor's scores at a time, where `chooses_apart` allows for it; of `names`."""

    def at(share: float) -> Masks:
        return select_apart(
            rules_of(wanted, config),
            score_of,
            share,
            alive=alive,
            magnitude=weights,
            layout=layout,
            names=names,
        )

    return _reached(at, wanted, config, layout, alive)


def chooses_apart(wanted: Wanted, config: Pruning, layout: Layout) -> bool:
    """Whether the mask is made of one tensor's scores at a time.

    In one ranking of all tensors these are computed several times, which is for large models.
    """
    plain = layout.origin is None and wanted.sparsity is not None
    large = sum(layout.shapes[n].numel() for n in layout.prunable) >= cut.VERY_MANY
    once = config.unit != "weight" or SCOPES[wanted.scope].shares is not None
    return plain and apart(config.unit, wanted.scope) and (once or large)


def chosen_by(
    score: Score, evidence: Evidence, wanted: Wanted, config: RunConfig, layout: Layout
) -> Masks:
    """The mask that a configuration makes of evidence; tensor by tensor where that is the same.

    Of a large model all scores at once, float64, take twice the memory of its weights.
    """
    alive, weights = evidence.masks, evidence.weights
    if not (score.apart and chooses_apart(wanted, config, layout)):
        return chosen(score.finalise(evidence), wanted, config, layout, alive, weights)

    stages = stages_of(layout) if isinstance(score.finalise, ByBlock) else []
    stage_of = {name: stage for stage in stages for name in stage}
    found: Tensors = {}

    def score_of(name: str) -> Tensor:
        if name not in found:
            those = [n for n in stage_of.get(name, (name,)) if n in weights]
            own = replace(
                evidence, weights={n: weights[n] for n in those}, masks={n: alive[n] for n in those}
            )
            found.clear()
            found.update(score.finalise(own))
        return found.pop(name)

    return chosen_apart(score_of, wanted, config, layout, alive, weights)


def rules_of(wanted: Wanted, config: Pruning) -> Rules:
    """What masks are chosen by."""
    return Rules(
        scope=wanted.scope,
        floor=config.floor,
        unit=config.unit,
        unit_shape=config.unit_shape,
        pool=config.pool or "mean",
        min_density=config.min_density,
        max_density=config.max_density,
        densities=config.layers,
        progress=wanted.progress,
    )


def _reached(
    at: Callable[[float], Masks], wanted: Wanted, config: RunConfig, layout: Layout, alive: Masks
) -> Masks:
    """The mask at the sparsity that is wanted, or at the nearest one where it is not the last."""
    assert wanted.sparsity is not None  # else a threshold decides
    sparsity = _of_what_is_left(wanted.sparsity, alive, layout)
    if config.reduce:  # which may have taken out more than the schedule asks for by now
        gone = sum(int((~mask).sum()) for mask in alive.values())
        sparsity = max(sparsity, gone / sum(mask.numel() for mask in alive.values()))
    try:
        return at(sparsity)
    except Unreachable as error:
        least = error.nearest / error.size
        # On the way, and to a target, there is no number to meet: caps may take more than it asks.
        if least < sparsity or (wanted.progress == 1.0 and config.sparsity is not None):
            raise
        return at(least)


def _of_what_is_left(sparsity: float, alive: Masks, layout: Layout) -> float:
    """A fraction of the dense model's weights as one of these, where factors took their place."""
    if layout.dense is None or alive.keys() != set(layout.prunable):
        return sparsity
    here = sum(mask.numel() for mask in alive.values())
    return max(0.0, 1.0 - (1.0 - sparsity) * layout.whole / here)


def first_parts(
    densities: Sequence[float], masks: Masks, weights: Tensors, config: RunConfig, layout: Layout
) -> list[Masks]:
    """For each density the first so many units of what a mask keeps, nested in one another.

    Densities are above 0 and up to 1, of what the mask keeps; weights decide ties. Server and
    clients find them alike: they need no data.
    """
    scores = by_position(layout, config.unit, config.unit_shape)
    kept = {n: weights[n] for n in masks}
    density = count_kept(masks) / layout.whole

    def part(share: float) -> Masks:
        if share == 1.0:
            return masks
        wanted = Wanted(1.0 - share * density, config.scope)
        return chosen(scores, wanted, config, layout, masks, kept)

    return [part(share) for share in densities]
