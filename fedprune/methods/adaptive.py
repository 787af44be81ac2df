"""The server's half of an adaptive schedule: what is tried, who measures it, what is taken.

How to try and how to judge is in `fedprune.selection.ladder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedprune.learning.candidates import HERE, Candidate, climbed
from fedprune.methods.global_mask import (
    pruned,
    rewound,
    scored,
    sparsity_of,
)
from fedprune.protocol.choice import Wanted, chosen
from fedprune.selection.ladder import (
    AdaptiveState,
    Point,
    along,
    as_rungs,
    furthest,
    ladder_up_to,
    limit,
    paced,
    parts_of,
    tries,
    verdict,
    way_of,
)
from fedprune.server.ask import Bench, asked
from fedprune.server.compare import compared
from fedprune.server.diagnostics import Notes
from fedprune.server.state import Plan, State
from fedprune.structure.layout import Layout
from fedprune.tensors import Masks, Tensors, count_kept


@dataclass(frozen=True)
class Trial:
    """A ladder of masks and what was measured on it.

    Attributes:
        rungs: the ladder.
        candidates: the model as it is, then ascending in sparsity.
        losses: theirs; none, if too few answered.
        layers: the loss curve of every part, where each had a ladder of its own.
    """

    rungs: Tensors
    candidates: Sequence[Candidate]
    losses: list[float] | None
    layers: list[dict[str, Any]] | None = None

    @property
    def able(self) -> bool:
        """Whether there was anything to try."""
        return any(bool(rungs.any()) for rungs in self.rungs.values())

    def masks(self, alive: Masks, place: int) -> Masks:
        """The masks of one of the candidates."""
        at = self.candidates[place].at
        return {n: m & ~climbed(self.rungs[n], at(n)) for n, m in alive.items()}


Choose = Callable[[float, Masks], Masks]
"""From a sparsity and what is alive to masks, of the tensors that are alive."""


def adapted(state: State, bench: Bench) -> tuple[State, Notes]:
    """Score once, measure some amounts on validation, and prune as far as the tolerance allows.

    The state owes a pruning if too few answered. Once nothing more can go, nobody is asked.
    """
    plan, c, now = bench.plan, bench.plan.config, sparsity_of(state.masks, bench.plan.layout)
    final = c.sparsity or 0.0  # the configuration has one
    pace = state.pace or AdaptiveState(final - now)
    if pace.done:
        return state, Notes()
    sparsities = tries(now, final, pace.step, c.candidates or 1)
    state, aggregate, evidence = asked(state, bench, (), sparsities[-1])
    if evidence is None:
        return replace(state, owed=True), Notes()
    scores = scored(aggregate, evidence, plan)

    def choose(sparsity: float, alive: Masks) -> Masks:
        wanted = Wanted(sparsity, c.scope, min(1.0, sparsity / final))
        ranked, weights = ({n: t[n] for n in alive} for t in (scores, evidence.weights))
        return chosen(ranked, wanted, c, plan.layout, alive, weights)

    tried = _by_layer if c.adaptive == "layer" else _as_a_whole
    state, trial = tried(replace(state, pace=pace), bench, choose, sparsities)
    return _settled(state, plan, trial, pace)


def _settled(state: State, plan: Plan, trial: Trial, pace: AdaptiveState) -> tuple[State, Notes]:
    """The state under the sparsest masks that were within the limit, and what to say of it."""
    c = plan.config
    if trial.losses is None:
        return replace(state, owed=True), Notes()
    here = trial.losses[0]
    reference = here if pace.reference is None else min(pace.reference, here)
    most = limit(reference, c.tolerance or 0.0)
    took = furthest(trial.losses, most)
    masks = [trial.masks(state.masks, i) for i in range(len(trial.candidates))]
    said = verdict(trial.losses, most, took) if trial.able else "stop"
    told = {
        "action": said,
        "reference": reference,
        "limit": most,
        "step": pace.step,
        "took": took,
        "tried": [
            [sparsity_of(m, plan.layout), loss] for m, loss in zip(masks, trial.losses, strict=True)
        ],
        "layers": trial.layers,
    }
    after = paced(replace(pace, reference=reference), said, c.candidates or 1)
    left = _allowed(masks[took], c.sparsity or 0.0, plan.layout)
    state = replace(state, pace=replace(after, done=after.done or not trial.able or left <= 0))
    if took:
        state = rewound(pruned(state, masks[took]), plan)
    return replace(state, owed=False), Notes(adaptive=told)


def _allowed(masks: Masks, sparsity: float, layout: Layout) -> int:
    """How many more weights may go until a sparsity is reached."""
    return math.floor(sparsity * layout.whole + 0.5) - (layout.whole - count_kept(masks))


def _as_a_whole(
    state: State, bench: Bench, choose: Choose, sparsities: Sequence[float]
) -> tuple[State, Trial]:
    plan, now = bench.plan, sparsity_of(state.masks, bench.plan.layout)
    masks = ladder_up_to(plan.config.sparsity or 0.0, choose, state.masks, now, sparsities)
    rungs = as_rungs(state.masks, masks)
    candidates = [HERE, *(Candidate(float(i)) for i in range(1, len(masks) + 1))]
    state, losses = compared(state, bench, candidates, rungs=rungs)
    return state, Trial(rungs, candidates, losses)


def _by_layer(
    state: State, bench: Bench, choose: Choose, sparsities: Sequence[float]
) -> tuple[State, Trial]:
    """Loss curves of every part by itself, then the cheapest steps of all together, measured."""
    c, pace = bench.plan.config, state.pace
    assert pace is not None  # set by who calls
    parts = parts_of(bench.plan.layout, c.unit)
    ladders, rungs = dict[str, list[Masks]](), as_rungs(state.masks, [])
    for part, names in parts.items():
        alive = {n: state.masks[n] for n in names}
        now = _part_sparsity(alive, bench.plan.layout)
        own = tries(now, 1.0, pace.step, len(sparsities))
        ladders[part] = ladder_up_to(1.0, choose, alive, now, own)
        rungs |= as_rungs(alive, ladders[part])
    places = [(part, i) for part, masks in ladders.items() for i in range(1, len(masks) + 1)]
    singles = [Candidate(apart=dict.fromkeys(parts[part], float(i))) for part, i in places]
    state, losses = compared(state, bench, [HERE, *singles], rungs=rungs)
    if losses is None or not singles:
        return state, Trial(rungs, [HERE], losses)
    measured = dict(zip(places, losses[1:], strict=True))
    curves = _curves(state.masks, ladders, parts, measured, losses[0])
    points = _points(state, bench.plan, curves, losses[0], len(sparsities))
    layers = _layers(state.masks, bench.plan.layout, ladders, measured)
    candidates = [HERE, *(_candidate(point, parts) for point in points)]
    losses = losses[:1]
    if points:
        state, losses = compared(state, bench, candidates, rungs=rungs)
    return state, Trial(rungs, candidates, losses, layers)


def _points(
    state: State, plan: Plan, curves: Mapping[str, list[tuple[int, float]]], here: float, n: int
) -> list[Point]:
    """What to measure together: places on the cheapest way, up to the sparsity that is allowed."""
    c, pace = plan.config, state.pace
    known = here if pace is None or pace.reference is None else min(pace.reference, here)
    most = _allowed(state.masks, c.sparsity or 0.0, plan.layout)
    return along(way_of(curves, most), limit(known, c.tolerance or 0.0) - here, n)


def _curves(
    alive: Masks,
    ladders: Mapping[str, Sequence[Masks]],
    parts: Mapping[str, Sequence[str]],
    losses: Mapping[tuple[str, int], float],
    here: float,
) -> dict[str, list[tuple[int, float]]]:
    kept = {part: count_kept({n: alive[n] for n in names}) for part, names in parts.items()}
    return {
        part: [(kept[part] - count_kept(m), losses[part, i] - here) for i, m in enumerate(masks, 1)]
        for part, masks in ladders.items()
    }


def _layers(
    alive: Masks,
    layout: Layout,
    ladders: Mapping[str, Sequence[Masks]],
    losses: Mapping[tuple[str, int], float],
) -> list[dict[str, Any]]:
    """For every part its sparsity and, for each rung, the sparsity there and the loss."""
    return [
        {
            "name": part,
            "sparsity": _part_sparsity({n: alive[n] for n in masks[0]}, layout),
            "tried": [[_part_sparsity(m, layout), losses[part, i]] for i, m in enumerate(masks, 1)],
        }
        for part, masks in ladders.items()
        if masks
    ]


def _part_sparsity(masks: Masks, layout: Layout) -> float:
    """The fraction that is gone of some tensors, as they were before anything was cut out."""
    shapes = layout.shapes if layout.origin is None else layout.origin.layout.shapes
    total = sum(shapes[name].numel() for name in masks)
    return (total - count_kept(masks)) / total


def _candidate(point: Point, parts: Mapping[str, Sequence[str]]) -> Candidate:
    return Candidate(
        apart={n: float(rung) for part, rung in point.rungs.items() for n in parts[part]}
    )
