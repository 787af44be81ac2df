"""Which units go: whole units in rank order, as many as fit.

Unlike single weights, units have sizes, so an asked count is reached only as nearly as whole units
allow, and never exceeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedprune.selection.densities import Limits
from fedprune.selection.pools import Ints, Numbers, Pooling, add_counts, unit_piece
from fedprune.selection.ranking import Array, Bools, Layer, Unreachable


@dataclass(frozen=True)
class Units:
    """The units in a ranking."""

    labels: Sequence[Numbers]  # each tensor's unit numbers, flat
    size: Ints  # weights alive, (units,)
    group: Ints  # who competes together, (units,): the first tensor that a unit is in, -1 for none
    rank: Ints  # place in the order of removal, (units,): by score, magnitude, number


def ranked(layers: Iterable[Layer], labels: Sequence[Numbers], pool: str) -> Units:
    """The units of the layers, scored by what of them is alive; one layer after the other.

    Raises:
        ValueError: no such pool, or infinities of both signs in one unit.
    """
    units = 1 + max((int(x.max()) for x in labels if len(x)), default=-1)
    scores, sizes, counted = Pooling(pool, units), Pooling(pool, units), False
    size = np.zeros(units, dtype=np.int64)
    group = np.full(units, -1, dtype=np.int64)
    for i, (layer, label) in enumerate(zip(layers, labels, strict=True)):
        piece = unit_piece(label, layer.scores, layer.alive)
        scores.add(piece)
        add_counts(size, piece.labels)
        if layer.magnitude is not None:
            counted = True
            sizes.add(unit_piece(label, np.abs(layer.magnitude), layer.alive))
        here = np.zeros(units, bool)
        here[label[label >= 0]] = True
        group[here & (group < 0)] = i
    keys = [sizes.scores(size)] if counted else []
    rank = np.empty(units, dtype=np.int64)
    rank[np.lexsort([*keys, scores.scores(size)])] = np.arange(units)
    return Units(labels, size, group, rank)


def competing(units: Units, together: Sequence[tuple[int, int, int]]) -> Units:
    """Units of which some lie in no tensor together, and yet compete: those of one mixture."""
    group = units.group.copy()
    for start, end, _ in together:
        group[start:end] = group[start]
    return replace(units, group=group)


def drop_units(
    layers: Sequence[Layer],
    units: Units,
    total: int,
    counts: Callable[[Sequence[Limits], int], list[int]] | None,
    *,
    floors: bool,
    staying: Sequence[tuple[int, int, int]] = (),
) -> Iterator[Bools]:
    """What is left of each layer without the lowest ranked units that fit into `total`.

    Units go in rank order until the next one does not fit; a smaller one behind it stays, so that
    masks of a rising sparsity are nested. Once a unit would take one of its tensors below its
    floor, that tensor loses no more.

    Args:
        layers: what is ranked, gone through several times; their scores are not looked at.
        units: of the same tensors.
        total: weights gone in the end, at most, those gone before included.
        counts: how many go from every group of units, from its limits and the total; None: all
            units compete with each other.
        floors: whether the layers' floors hold; units that are whole tensors know none.
        staying: first number, end and how many of these units stay, the highest ranked.

    Raises:
        ValueError: more is asked than the units hold.
    """
    pinned = _pinned(layers, units) if floors else np.zeros(len(units.size), bool)
    for start, end, least in staying:
        living = start + np.flatnonzero(units.size[start:end])
        pinned[living[np.argsort(units.rank[living])][max(0, len(living) - least) :]] = True
    free = np.flatnonzero((units.size > 0) & ~pinned)
    group = units.group if counts is not None else np.zeros_like(units.group)
    budgets = _budgets(layers, units, total, counts)
    free = free[np.lexsort((units.rank[free], group[free]))]
    spent = _running(units.size[free], group[free])
    gone = np.zeros(len(units.size) + 1, bool)  # the last one is for weights in no unit: -1
    gone[free[spent <= budgets[group[free]]]] = True
    _check_reached(layers, units, total, gone[:-1], free)
    return (
        ~gone[label] if layer.alive is None else layer.alive & ~gone[label]
        for layer, label in zip(layers, units.labels, strict=True)
    )


def _pinned(layers: Sequence[Layer], units: Units) -> Bools:
    """Units that have to stay for the sake of a tensor's floor."""
    pinned = np.zeros(len(units.size), bool)
    for layer, label in zip(layers, units.labels, strict=True):
        inside = label >= 0 if layer.alive is None else layer.alive & (label >= 0)
        there, sizes = np.unique(label[inside], return_counts=True)
        order = np.argsort(units.rank[there])
        over = np.cumsum(sizes[order]) > layer.most - layer.gone
        pinned[there[order][over]] = True
    return pinned


def _budgets(
    layers: Sequence[Layer],
    units: Units,
    total: int,
    counts: Callable[[Sequence[Limits], int], list[int]] | None,
) -> Ints:
    """How many more weights may go, by group; of one group if all units compete."""
    gone = sum(layer.gone for layer in layers)
    if counts is None:
        return np.array([total - gone])
    size = _by_group(layers, units, [label >= 0 for label in units.labels])
    now = _by_group(layers, units, [_dead(*x) for x in zip(layers, units.labels, strict=True)])
    outside = gone - sum(now)
    limits = [Limits(n, lost, n) for n, lost in zip(size, now, strict=True)]
    if total - outside > sum(size):
        raise _too_much(layers, total, sum(size) + outside)
    wanted = counts(limits, total - outside)
    return np.array([w - g for w, g in zip(wanted, now, strict=True)], dtype=np.int64)


def _dead(layer: Layer, label: Numbers) -> Bools:
    return np.zeros(len(label), bool) if layer.alive is None else ~layer.alive & (label >= 0)


def _by_group(layers: Sequence[Layer], units: Units, which: Sequence[Bools]) -> list[int]:
    """Weights that are chosen, by the group of their unit."""
    total = np.zeros(len(layers), dtype=np.int64)
    for label, chosen in zip(units.labels, which, strict=True):
        total += np.bincount(units.group[label[chosen]], minlength=len(layers))
    return [int(n) for n in total]


def _running(sizes: Ints, group: Ints) -> Ints:
    """Running sums that start anew in every group; equal groups stand side by side."""
    sums: Ints = np.cumsum(sizes)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    before = np.concatenate([[0], sums])[starts]
    runs = np.diff(np.concatenate([starts, [len(group)]]))
    since: Ints = sums - np.repeat(before, runs)
    return since


def _check_reached(
    layers: Sequence[Layer], units: Units, total: int, gone: Bools, free: Array
) -> None:
    """Refuse a total that is missed by a whole unit, since there is none left to remove."""
    reached = sum(layer.gone for layer in layers) + int(units.size[gone].sum())
    largest = int(units.size.max(initial=0))
    if gone[free].all() and total - reached >= max(1, largest):
        raise _too_much(layers, total, reached)


def _too_much(layers: Sequence[Layer], total: int, most: int) -> Unreachable:
    n = sum(layer.size for layer in layers)
    reason = f"cannot remove {total} of {n} weights: units and floors allow {most}"
    return Unreachable(reason, most, n)
