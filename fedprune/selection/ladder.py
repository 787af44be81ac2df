"""How much goes in a round, chosen from losses that clients measured on their validation parts.

The server scores once and makes a ladder of nested masks from the sparsity in force upwards. The
clients measure all of them in one question, and the sparsest whose loss is within the tolerance is
taken. Trying several amounts and keeping what the measured quality allows is NetAdapt's way (Yang
et al. 2018, arXiv 1804.03230, algorithm 1), there with short tuning before each measurement, here
without; curves of loss over the sparsity of one layer are those of Han et al. 2015, arXiv
1506.02626, section 5, and Li et al. 2017, arXiv 1608.08710, section 3.2.

**The reference** is the lowest loss that any model had before it was pruned, from the first pruning
on. So tolerated losses do not add up over rounds: after a step that tuning does not make good, the
next step has that much less room, and none at all once the model is past the limit by itself.

**Stepping back** is never to undo a mask: masks that were tried and not taken were never in force,
and masks in force only shrink. When no try is within the limit the width of the next tries halves,
when the widest one is it doubles; pruning stops by itself when tries would be finer than `FINEST`
or nothing is left to remove.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedprune.selection.units import UNITS
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks, Tensors, count_kept

FINEST = 1e-3  # The smallest step in sparsity that is worth a question

ADAPTIVE = {
    "global": "one sparsity for all tensors, ranked by --scope",
    "layer": "a sparsity for each tensor (for heads and neurons: each sub-layer), from curves of "
    "the loss, layer by layer; the steps that cost least are taken",
}


@dataclass(frozen=True)
class AdaptiveState:
    """Where an adaptive schedule stands between two rounds."""

    step: float  # how far beyond the sparsity in force the next tries reach
    # lowest mean loss before a pruning so far; None: nothing was measured yet
    reference: float | None = None
    done: bool = False  # nothing more will be tried


def tries(now: float, final: float, step: float, n: int) -> list[float]:
    """The `n` sparsities to try next: evenly up to now + step, and not beyond `final`."""
    top = min(final, now + step)
    return [*(now + (top - now) * i / n for i in range(1, n)), top]


def limit(reference: float, tolerance: float) -> float:
    """The largest loss allowed: a part `tolerance` of the reference above it."""
    return reference + tolerance * abs(reference)


def furthest(losses: Sequence[float], most: float) -> int:
    """The last place with a loss of at most `most`, 0 if there is none after the first.

    The first place is the model as it is; the others are in the order of their sparsities. Where a
    sparser try is within the limit and one before it is not, the sparser one counts.
    """
    return max((i for i, loss in enumerate(losses) if i and loss <= most), default=0)


def verdict(losses: Sequence[float], most: float, took: int) -> str:
    """What came of a comparison: one of "widen", "prune", "wait" and "step back".

    While the model is beyond the limit by itself, tries say nothing about their width: it waits.
    """
    if took:
        return "widen" if took == len(losses) - 1 else "prune"
    return "wait" if losses[0] > most else "step back"


def paced(pace: AdaptiveState, said: str, n: int) -> AdaptiveState:
    """How to go on after a verdict, with `n` tries at a time."""
    step = pace.step * {"widen": 2.0, "step back": 0.5}.get(said, 1.0)
    return replace(pace, step=step, done=step < FINEST * n)


def ladder(
    choose: Callable[[float, Masks], Masks], alive: Masks, sparsities: Sequence[float]
) -> list[Masks]:
    """Nested masks of growing sparsity, each different from the one before; none below `alive`.

    `choose`: the masks of a sparsity within what an earlier mask kept. A ValueError means that
    floors or units do not allow it: the ladder ends there.
    """
    rungs = [alive]
    for sparsity in sparsities:
        try:
            masks = choose(sparsity, rungs[-1])
        except ValueError:
            break
        if count_kept(masks) < count_kept(rungs[-1]):
            rungs.append(masks)
    return rungs[1:]


def ladder_up_to(
    most: float,
    choose: Callable[[float, Masks], Masks],
    alive: Masks,
    now: float,
    sparsities: Sequence[float],
) -> list[Masks]:
    """A `ladder`; where whole units are larger than all of its steps, one rung of one such unit.

    `most`: the sparsity that is not to be exceeded.
    """
    masks, top = ladder(choose, alive, sparsities), sparsities[-1]
    while not masks and top < most:
        top = min(most, now + 2.0 * max(top - now, FINEST))
        masks = ladder(choose, alive, [top])
    return masks


def as_rungs(alive: Masks, masks: Sequence[Masks]) -> Tensors:
    """At which rung of a ladder each weight goes, from 1; 0 where it stays or was gone before."""
    return {name: _rungs(kept, [m[name] for m in masks]) for name, kept in alive.items()}


def _rungs(kept: Tensor, ladder_: Sequence[Tensor]) -> Tensor:
    rungs = torch.zeros(kept.shape, dtype=torch.uint8)
    for rung, mask in enumerate(ladder_, 1):
        rungs[kept & ~mask] = rung
        kept = kept & mask
    return rungs


def ladder_parts(layout: Layout, unit: str) -> dict[str, tuple[str, ...]]:
    """What gets a ladder of its own: every prunable tensor, or the tensors that units run through.

    Only for units that lie in one tensor, and for heads and neurons.
    """
    if UNITS[unit].tensors == "one":
        return {name: (name,) for name in layout.prunable}
    return {
        group.path: tuple(dict.fromkeys(part.tensor for part in group.parts))
        for group in layout.structure.groups
        if group.kind == unit
    }


@dataclass(frozen=True)
class Point:
    """A place on the way that takes the cheapest step first."""

    # by part, how many rungs it has climbed; those that are not named, none
    rungs: Mapping[str, int]
    removed: int = 0  # weights that are gone by that, beyond those gone before
    rise: float = 0.0  # by how much the loss rises, if the rises of single parts add up


_Curve = Sequence[tuple[int, float]]
"""Weights removed and rise of the loss after each rung of one part, ascending."""


def way_of(curves: Mapping[str, _Curve], most: int) -> list[Point]:
    """The way from nothing removed: always the rung whose weights cost least loss apiece.

    It ends when all is climbed or the next rung would remove more than `most`. Whether the rises
    really add up has to be measured: see `along`.
    """
    points = [Point({})]
    while True:
        here = points[-1]
        steps = [_step(here, part, curve) for part, curve in curves.items()]
        open_ = [s for s in steps if s is not None and s.removed <= most]
        if not open_:
            return points
        points.append(min(open_, key=lambda s: (s.rise - here.rise) / (s.removed - here.removed)))


def _step(here: Point, part: str, curve: _Curve) -> Point | None:
    at = here.rungs.get(part, 0)
    if at == len(curve):
        return None
    gone, rise = curve[at - 1] if at else (0, 0.0)
    removed, loss = curve[at]
    return Point(
        {**here.rungs, part: at + 1}, here.removed + removed - gone, here.rise + loss - rise
    )


def along(way: Sequence[Point], allowance: float, n: int) -> list[Point]:
    """At most `n` places on the way to measure: the last ones within parts of the allowance.

    Twice the allowance, the allowance, half of it and so on, since a sum of rises is a guess. The
    beginning, where nothing is removed, is left out. Ascending.
    """
    budgets = [allowance * 2.0 ** (2 + i - n) for i in range(n)]
    places = [max(i for i, p in enumerate(way) if i == 0 or p.rise <= b) for b in budgets]
    return [way[i] for i in sorted(set(places) - {0})]
