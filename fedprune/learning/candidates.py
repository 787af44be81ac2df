"""Models near the one at hand, described so shortly that clients can try many in one question.

A candidate says for every tensor how far to go from the weights that a question carries; 0 is
those weights themselves. What lies on the way travels once, whatever the number of candidates:

- *rungs*, to prune: the rung of a ladder of nested masks at which a weight goes (0: on none). A
  candidate that stands on rung r lacks the weights of the rungs 1 to r.
- *back*, to blend: the way back to the weights before, w_before - w_after. A candidate that goes
  the part f of it is w_after + f (w_before - w_after): for alpha = 1 - f that is
  alpha w_after + (1 - alpha) w_before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedprune.learning.averaging import from_moments, to_moments
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Tensors


@dataclass(frozen=True)
class Candidate:
    """How far one candidate goes: a rung of the ladder, or a part of the way back.

    `far` holds for every tensor that `apart` does not name.
    """

    far: float = 0.0
    apart: Mapping[str, float] = field(default_factory=dict)

    def at(self, name: str) -> float:
        """How far to go in one tensor."""
        return self.apart.get(name, self.far)


_FARTHEST = 1e9  # rungs are 255 at most, and parts of the way a few times it

HERE = Candidate()
"""The model as it is: the first candidate of every comparison."""


def without(weights: Mapping[str, Tensor], rungs: Tensors, candidate: Candidate) -> Tensors:
    """The weights without what lies on the rungs that the candidate has climbed.

    Tensors of which nothing goes are the same objects as before.
    """
    return {
        name: w.masked_fill(climbed(rungs[name], candidate.at(name)), 0.0)
        if name in rungs and candidate.at(name)
        else w
        for name, w in weights.items()
    }


def climbed(rungs: Tensor, rung: float) -> Tensor:
    """True where a weight is gone on this rung of the ladder."""
    return (rungs > 0) & (rungs <= rung)


def way_back(before: Mapping[str, Tensor], after: Mapping[str, Tensor], layout: Layout) -> Tensors:
    """w_before - w_after in float32; of BatchNorm's running variances as second moments.

    Both have to be 0.0 where something was removed: then so is every model on the way.
    """
    start = to_moments({n: w.double() for n, w in after.items()}, layout)
    end = to_moments({n: w.double() for n, w in before.items()}, layout)
    return {name: (end[name] - start[name]).float() for name in start}


def blended(
    after: Mapping[str, Tensor], back: Mapping[str, Tensor], candidate: Candidate, layout: Layout
) -> Tensors:
    """The weights after going back as far as the candidate says, float32.

    Who goes on instead (a negative part) does so with what is learned; statistics stay: a second
    moment beyond the mean change is nobody's, and its variance may be negative. A tensor that stays
    is the same object as before, so that going back by 0 is no blending bit for bit. A running
    variance and its mean have to go equally far.
    """
    far = {name: candidate.at(name) for name in after}
    far |= {name: max(0.0, far[name]) for name in layout.statistics & far.keys()}
    start = to_moments({n: w.double() for n, w in after.items()}, layout)
    moved = from_moments({n: start[n] + far[n] * back[n].double() for n in start}, layout)
    return {name: moved[name].float() if far[name] else after[name] for name in after}


def as_table(candidates: Sequence[Candidate], names: Sequence[str]) -> list[list[object]]:
    """Candidates as lists for JSON, tensors by their place in `names`."""
    place = {name: i for i, name in enumerate(names)}
    return [[c.far, [[place[n], far] for n, far in c.apart.items()]] for c in candidates]


def from_table(table: Any, names: Sequence[str]) -> tuple[Candidate, ...]:
    """The inverse of `as_table`.

    Raises:
        ValueError: it is no such table. Nothing else is raised, whatever it is.
    """
    if not isinstance(table, list | tuple):
        raise ValueError("candidates are malformed: no list")
    return tuple(_candidate(one, names) for one in table)


def _candidate(said: Any, names: Sequence[str]) -> Candidate:
    far, apart = _pair(said)
    if not isinstance(apart, list | tuple):
        raise ValueError("candidates are malformed: no list of what goes apart")
    found: dict[str, float] = {}
    for place, x in map(_pair, apart):
        if type(place) is not int or not 0 <= place < len(names) or names[place] in found:
            raise ValueError("candidates are malformed: a tensor that there is not, or twice")
        found[names[place]] = _far(x)
    return Candidate(_far(far), found)


def _pair(said: Any) -> tuple[Any, Any]:
    if not isinstance(said, list | tuple) or len(said) != 2:
        raise ValueError("candidates are malformed: no pair")
    return said[0], said[1]


def _far(said: Any) -> float:
    if type(said) not in (int, float) or not abs(said) <= _FARTHEST:
        raise ValueError("candidates are malformed: how far is no number of that size")
    return float(said)
