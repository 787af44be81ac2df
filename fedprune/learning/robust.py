"""Rules for the clients' changes that some of the clients cannot bend as they like.

A mean goes wherever a single client wants it to. These rules look at the changes one by one, so the
server holds all of them (4 bytes a value and client), and no secure sum can feed them. Every client
counts alike: how many labels it has is its own word.

Weights, and statistics such as BatchNorm's, are judged apart: neither hides behind the scale of the
other. What is not protected: a minority that stays close to the others (Baruch et al. 2019, arXiv
1902.06156), and clients whose honest data differ much from most others' count less, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedprune.learning.robust_rules import ROBUST, VALUES_WIDENED, Rule, nearest_shares
from fedprune.structure.layout import Layout
from fedprune.tensors.named import flat_places

_Read = Callable[[Tensor], Tensor]
"""From positions to the changes there, (clients, positions) float64."""


def robust_change(
    rule: str,
    singles: Tensor,
    byzantine: int,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    layout: Layout,
) -> Tensor:
    """One change of many: flat float64 on the kept coordinates.

    Of `singles`, (clients, values) float32 on the kept coordinates, finite, of which so many may be
    anything.
    """
    its, places = ROBUST[rule], flat_places(layout.shapes, masks)
    out = torch.empty(singles.shape[1], dtype=torch.float64)
    for group in (False, True):
        those = [place for name, place in places.items() if (name in layout.statistics) == group]
        read = _reading(its, singles, those, byzantine)
        for at, block in _of_group(its, read, those, byzantine):
            out[at] = block
    if its.middle is not None and layout.variances:
        out = _with_variances(its.middle, read, byzantine, out, weights, places, layout)
    return out


def _positions(places: Sequence[slice]) -> Iterator[Tensor]:
    """The positions of some places, so many at a time as are widened, and never all."""
    some, room = list[Tensor](), VALUES_WIDENED
    for place in places:
        at = place.start
        while at < place.stop:
            end = min(place.stop, at + room)
            some.append(torch.arange(at, end))
            room -= end - at
            at = end
            if not room:
                yield torch.cat(some)
                some, room = [], VALUES_WIDENED
    if some:
        yield torch.cat(some)


def _reading(rule: Rule, singles: Tensor, places: Sequence[slice], byzantine: int) -> _Read:
    """What a rule sees at positions of these places: the changes, or their mixtures."""

    def plain(some: Tensor) -> Tensor:
        return singles[:, some].double()

    if not rule.mixes or all(place.start == place.stop for place in places):
        return plain
    shares = nearest_shares(lambda: map(plain, _positions(places)), byzantine)
    return lambda some: shares @ plain(some)


def _of_group(
    rule: Rule, read: _Read, places: Sequence[slice], byzantine: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of the places, and the change there, some at a time."""

    def blocks() -> Iterator[Tensor]:
        return map(read, _positions(places))

    if all(place.start == place.stop for place in places):
        return
    factors = None if rule.factors is None else rule.factors(blocks, byzantine)
    for at in _positions(places):
        if factors is not None:
            yield at, factors @ read(at)
        else:
            assert rule.middle is not None  # one or the other
            yield at, rule.middle(read(at), byzantine)


def _with_variances(
    middle: Callable[[Tensor, int], Tensor],
    read: _Read,
    byzantine: int,
    out: Tensor,
    weights: Mapping[str, Tensor],
    places: Mapping[str, slice],
    layout: Layout,
) -> Tensor:
    """The change, with second moments from the middle of the clients' variances.

    They travel as second moments, whose middle beside the middle of the means would be no
    variance: it may be negative. Factors have no such trouble, a mixture's moments are moments.
    """
    for variance, mean in layout.variances.items():
        at, its = (torch.arange(p.start, p.stop) for p in (places[variance], places[mean]))
        old_mean = weights[mean].double().reshape(-1)
        old = weights[variance].double().reshape(-1) + old_mean**2
        means = old_mean + read(its)
        variances = (old + read(at) - means**2).clamp_min(0.0)
        out[at] = middle(variances, byzantine) + (old_mean + out[its]) ** 2 - old
    return out
