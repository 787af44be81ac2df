"""Units that share weights: whichever goes first takes the weight along.

A convolution's weight is read of one channel and makes another one. In the order of removal every
weight belongs to the unit that goes first of its two; so counted, units are a partition again, and
what a removal costs is what it really takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedprune.selection.pools import Ints, Numbers, add_counts, unit_piece
from fedprune.selection.ranking import Bools, Layer
from fedprune.selection.unit_ranking import Units, ranked


def overlapping(
    layers: Sequence[Layer],
    labels: Sequence[Numbers],
    along: Sequence[Numbers],
    pool: str,
    *,
    evenly: bool,
) -> Units:
    """The units that may go, as a partition of the weights that go with them.

    Units whose removal would leave a tensor below its floor, after all that rank lower, are in no
    weight: they stay.

    `labels`: the unit that each weight counts for in the scores, -1 for none; flat. `along`: a
    second unit that takes the weight with it, -1 for none; flat. `evenly`: units of every group
    lose the same share of it, one at a time, instead of going by their scores across groups.
    """
    units = ranked(layers, labels, pool)
    rank = _evenly(units) if evenly else units.rank
    pinned = _pinned(layers, labels, along, rank)
    owners = [_first(own, more, rank, pinned) for own, more in zip(labels, along, strict=True)]
    size = np.zeros(len(rank), dtype=np.int64)
    for layer, label in zip(layers, owners, strict=True):
        add_counts(size, unit_piece(label, layer.scores, layer.alive).labels)
    return replace(units, labels=owners, size=size, rank=rank)


def _evenly(units: Units) -> Ints:
    """The places in an order in which the groups take turns in proportion to their sizes."""
    share = np.zeros(len(units.rank))
    for group in np.unique(units.group):
        members = np.flatnonzero(units.group == group)
        living = members[units.size[members] > 0]
        gone = len(members) - len(living)
        by_rank = living[np.argsort(units.rank[living])]
        share[by_rank] = (gone + 1 + np.arange(len(living))) / len(members)
    rank = np.empty(len(share), dtype=np.int64)
    rank[np.lexsort((units.rank, share))] = np.arange(len(share))
    return rank


def _first(own: Numbers, more: Numbers, rank: Ints, pinned: Bools) -> Numbers:
    """Of every weight the unit that goes first of its two; -1, where both stay."""
    last = len(rank)
    place = np.append(np.where(pinned, last, rank), last)  # the last one is for -1
    first, second = place[own], place[more]
    owners: Numbers = np.where(first <= second, own, more)
    owners[np.minimum(first, second) == last] = -1
    return owners


def _pinned(
    layers: Sequence[Layer], labels: Sequence[Numbers], along: Sequence[Numbers], rank: Ints
) -> Bools:
    pinned = np.zeros(len(rank), bool)
    for layer, own, more in zip(layers, labels, along, strict=True):
        living = slice(None) if layer.alive is None else layer.alive
        owners = _first(own[living], more[living], rank, np.zeros_like(pinned))
        there, sizes = np.unique(owners[owners >= 0], return_counts=True)
        order = there[np.argsort(rank[there])]
        over = np.cumsum(sizes[np.argsort(rank[there])]) > layer.most - layer.gone
        if over.any():
            met = np.union1d(own[living], more[living])
            met = met[met >= 0]
            pinned[met[rank[met] >= rank[order[over][0]]]] = True
    return pinned
