"""The server's half of an adaptive schedule: what is tried, who measures it, what is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedprune.learning.candidates import HERE, Candidate, climbed
from fedprune.methods.global_mask import sparsity_of
from fedprune.methods.method import Method
from fedprune.methods.scored import scored
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.protocol.choice import Wanted, chosen
from fedprune.selection.ladder import (
    AdaptiveState,
    along,
    as_rungs,
    furthest,
    ladder_parts,
    ladder_up_to,
    limit,
    paced,
    tries,
    verdict,
    way_of,
)
from fedprune.server.ask import asked
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk, compared
from fedprune.server.state import Model
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks, Tensors, count_kept


@dataclass(frozen=True)
class Trial:
    """A ladder of masks and what was measured on it."""

    rungs: Tensors  # the ladder
    candidates: Sequence[Candidate]  # the model as it is, then ascending in sparsity
    losses: list[float] | None  # theirs; none, if too few answered
    # the loss curve of every part, where each had a ladder of its own
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


@dataclass(frozen=True)
class Memory:
    """Where the schedule stands; None before its first pruning."""

    pace: AdaptiveState | None = None


def adapted(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """Score once, measure some amounts on validation, and prune as far as the tolerance allows.

    Once nothing more can go, nobody is asked.
    """
    c, now = r.config, sparsity_of(model.masks, r.layout)
    final = c.sparsity or 0.0  # the configuration has one
    pace = memory.pace or AdaptiveState(final - now)
    if pace.done:
        return Step(model, memory)
    sparsities = tries(now, final, pace.step, c.candidates or 1)
    aggregate, evidence = yield from asked(model, r, (), sparsities[-1])
    if evidence is None:
        return Step(model, memory, undone=TOO_FEW)
    scores = scored(aggregate, evidence, r.plan)

    def choose(sparsity: float, alive: Masks) -> Masks:
        wanted = Wanted(sparsity, c.scope, min(1.0, sparsity / final))
        ranked, weights = ({n: t[n] for n in alive} for t in (scores, evidence.weights))
        return chosen(ranked, wanted, c, r.layout, alive, weights)

    tried = _by_layer if c.adaptive == "layer" else _as_a_whole
    trial = yield from tried(model, pace, r, choose, sparsities)
    if trial.losses is None:
        return Step(model, memory, undone=TOO_FEW)
    return _settled(model, r, trial, trial.losses, pace)


def _settled(
    model: Model, r: Round, trial: Trial, losses: Sequence[float], pace: AdaptiveState
) -> Step:
    """The model under the sparsest masks that were within the limit, and what to say of it."""
    c, (reference, most) = r.config, _limit(pace, losses[0], r)
    took = furthest(losses, most)
    masks = [trial.masks(model.masks, i) for i in range(len(trial.candidates))]
    said = verdict(losses, most, took) if trial.able else "stop"
    told = {
        "action": said,
        "reference": reference,
        "limit": most,
        "step": pace.step,
        "took": took,
        "tried": [[sparsity_of(m, r.layout), loss] for m, loss in zip(masks, losses, strict=True)],
        "layers": trial.layers,
    }
    after = paced(replace(pace, reference=reference), said, c.candidates or 1)
    left = _allowed(masks[took], c.sparsity or 0.0, r.layout)
    pace = replace(after, done=after.done or not trial.able or left <= 0)
    return Step(model.under(masks[took]) if took else model, Memory(pace), Notes(adaptive=told))


def _limit(pace: AdaptiveState, here: float, r: Round) -> tuple[float, float]:
    """The lowest loss before a pruning so far, and the largest that is allowed."""
    reference = here if pace.reference is None else min(pace.reference, here)
    return reference, limit(reference, r.config.tolerance or 0.0)


def _allowed(masks: Masks, sparsity: float, layout: Layout) -> int:
    """How many more weights may go until a sparsity is reached."""
    return math.floor(sparsity * layout.whole + 0.5) - (layout.whole - count_kept(masks))


def _as_a_whole(
    model: Model, _: AdaptiveState, r: Round, choose: Choose, sparsities: Sequence[float]
) -> Talk[Trial]:
    now = sparsity_of(model.masks, r.layout)
    masks = ladder_up_to(r.config.sparsity or 0.0, choose, model.masks, now, sparsities)
    rungs = as_rungs(model.masks, masks)
    candidates = [HERE, *(Candidate(float(i)) for i in range(1, len(masks) + 1))]
    losses = yield from compared(model, r, candidates, rungs=rungs)
    return Trial(rungs, candidates, losses)


def _by_layer(
    model: Model, pace: AdaptiveState, r: Round, choose: Choose, sparsities: Sequence[float]
) -> Talk[Trial]:
    """Loss curves of every part by itself, then the cheapest steps of all together, measured."""
    parts = ladder_parts(r.layout, r.config.unit)
    ladders, rungs = dict[str, list[Masks]](), as_rungs(model.masks, [])
    for part, names in parts.items():
        alive = {n: model.masks[n] for n in names}
        now = _part_sparsity(alive, r.layout)
        own = tries(now, 1.0, pace.step, len(sparsities))
        ladders[part] = ladder_up_to(1.0, choose, alive, now, own)
        rungs |= as_rungs(alive, ladders[part])
    places = [(part, i) for part, masks in ladders.items() for i in range(1, len(masks) + 1)]
    singles = [Candidate(apart=dict.fromkeys(parts[part], float(i))) for part, i in places]
    losses = yield from compared(model, r, [HERE, *singles], rungs=rungs)
    if losses is None or not singles:
        return Trial(rungs, [HERE], losses)
    measured = dict(zip(places, losses[1:], strict=True))
    curves = _curves(model.masks, ladders, parts, measured, losses[0])
    most = _allowed(model.masks, r.config.sparsity or 0.0, r.layout)
    allowance = _limit(pace, losses[0], r)[1] - losses[0]
    points = along(way_of(curves, most), allowance, len(sparsities))
    layers = [
        {
            "name": part,
            "sparsity": _part_sparsity({n: model.masks[n] for n in masks[0]}, r.layout),
            "tried": [
                [_part_sparsity(m, r.layout), measured[part, i]] for i, m in enumerate(masks, 1)
            ],
        }
        for part, masks in ladders.items()
        if masks
    ]
    names_of = [{n: float(i) for part, i in p.rungs.items() for n in parts[part]} for p in points]
    candidates = [HERE, *(Candidate(apart=apart) for apart in names_of)]
    together: list[float] | None = losses[:1]
    if points:
        together = yield from compared(model, r, candidates, rungs=rungs)
    return Trial(rungs, candidates, together, layers)


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


def _part_sparsity(masks: Masks, layout: Layout) -> float:
    """The fraction that is gone of some tensors, as they were before anything was cut out."""
    shapes = layout.shapes if layout.origin is None else layout.origin.layout.shapes
    total = sum(shapes[name].numel() for name in masks)
    return (total - count_kept(masks)) / total


METHOD = Method(
    "one mask for all; the clients' validation losses decide how much goes (--schedule adaptive)",
    "prune as far as a tolerance allows, in steps that shrink where a step was too far; no paper's "
    "rule is followed to the letter, see `fedprune.selection.ladder`",
    tune=tuned(),
    before=adapted,
    memory=Memory,
    over=lambda memory: memory.pace is not None and memory.pace.done,
)
