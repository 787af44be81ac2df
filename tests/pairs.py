"""A pairwise covering array over the choices of a configuration, of which many are refused.

A *choice* is a factor (a key of the schema) and one of its values; a *row* is a set of changes to
a base configuration. A pair of choices is covered by a row that has both and is accepted, or by a
refusal that names one of the two.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

Choice = tuple[str, int]
"""A factor, and which of its values: the first one is that of the base."""

Row = dict[str, int]
"""Value numbers by factor, of the factors that are not as in the base."""

Refusal = Callable[[Row], tuple[str, str] | None]
"""The factor that a refusal of a row names, with the whole line; None where it is accepted."""


@dataclass
class Array:
    """What came out.

    Attributes:
        rows: accepted, together with every pair that can be had.
        had: pairs that rows have.
        left: pairs that were not looked at, and are in no row.
        alone: what has to be set for a choice to be accepted at all; None: nothing was found.
    """

    rows: list[Row] = field(default_factory=list)
    had: set[tuple[Choice, Choice]] = field(default_factory=set)
    left: set[tuple[Choice, Choice]] = field(default_factory=set)
    alone: dict[Choice, Row | None] = field(default_factory=dict)


def covering(
    sizes: Mapping[str, int],
    refusal: Refusal,
    first: Collection[str] = (),
    *,
    most: int = 10**9,
    seed: int = 0,
) -> Array:
    """Rows that cover every pair of choices, greedily; the same for the same seed.

    Args:
        sizes: how many values each factor has, the base's included.
        refusal: what says whether a row is accepted.
        first: factors that are settled before the others in every row.
        most: rows at most; the pairs that they leave are in `Array.left`.
        seed: of the order in which pairs and factors are tried.
    """
    out, chance = Array(), random.Random(seed)
    out.alone = {c: _alone(c, sizes, refusal) for c in _choices(sizes)}
    open_ = dict.fromkeys(_pairs(sizes))
    for pair in chance.sample(list(open_), len(open_)):
        if pair not in open_ or len(out.rows) == most:
            continue
        row = _settled(pair, out.alone, sizes, refusal)
        if row is None:
            del open_[pair]
            continue
        order = sorted(chance.sample(list(sizes), len(sizes)), key=lambda name: name not in first)
        out.rows.append(_grown(row, [n for n in order if n not in row], sizes, open_, refusal))
        for one in _pairs_in(out.rows[-1], sizes):
            if one in open_:
                out.had.add(one)
                del open_[one]
    return replace(out, left=set(open_))


def _choices(sizes: Mapping[str, int]) -> list[Choice]:
    return [(name, i) for name, size in sizes.items() for i in range(size)]


def _pairs(sizes: Mapping[str, int]) -> Iterator[tuple[Choice, Choice]]:
    for a, b in combinations(sizes, 2):
        yield from (((a, i), (b, j)) for i, j in product(range(sizes[a]), range(sizes[b])))


def _pairs_in(row: Row, sizes: Mapping[str, int]) -> Iterator[tuple[Choice, Choice]]:
    yield from combinations([(name, row.get(name, 0)) for name in sizes], 2)


def _alone(choice: Choice, sizes: Mapping[str, int], refusal: Refusal) -> Row | None:
    """Changes, two at most, beside which a choice is accepted: those that refusals name first."""
    one = dict([choice])
    others = [c for c in _choices(sizes) if c[0] != choice[0] and c[1]]
    without = refusal(one)
    if without is None:
        return one
    for changes in (1, 2):
        if row := _as_told(one, sizes, refusal, changes):
            return row
    beside = {}
    for name, i in others:
        beside[name, i] = refused = refusal({name: i, **one})
        if refused is None:
            return {name: i, **one}
    # First beside what another line about the choice says: there are 30,000 pairs of changes.
    near = [c for c, r in beside.items() if r[0] == choice[0] and r != without]
    for two in [*product(others, near), *combinations(others, 2)]:
        row = dict(two) | one
        if len(row) == 3 and refusal(row) is None:
            return row
    return None


def _as_told(row: Row, sizes: Mapping[str, int], refusal: Refusal, changes: int) -> Row | None:
    """The row with other values of what its refusals speak of, so many at most."""
    refused = refusal(row)
    if refused is None or not changes:
        return row if refused is None else None
    spoken_of = {*re.findall(r"\w+", refused[1].replace("-", "_")), refused[0]}
    spoken_of |= {word.strip("_") for word in spoken_of}  # of --vote-scope
    near = [n for n in sizes if n in spoken_of - row.keys()]
    tried = ({**row, n: i} for n in near for i in range(1, sizes[n]))
    return next(filter(None, (_as_told(r, sizes, refusal, changes - 1) for r in tried)), None)


def _settled(
    pair: tuple[Choice, Choice],
    alone: Mapping[Choice, Row | None],
    sizes: Mapping[str, int],
    refusal: Refusal,
) -> Row | None:
    """A row with both choices; None: it is refused, whatever the factor that it names is."""
    a, b = pair
    row = {**(alone[a] or {}), **(alone[b] or {}), a[0]: a[1], b[0]: b[1]}
    refused = refusal(row)
    if refused is None:
        return row
    named, _ = refused
    others = () if named in (a[0], b[0]) else range(sizes.get(named, 0))
    return next(({**row, named: i} for i in others if refusal({**row, named: i}) is None), None)


def _grown(
    row: Row,
    order: Sequence[str],
    sizes: Mapping[str, int],
    open_: Mapping[tuple[Choice, Choice], None],
    refusal: Refusal,
) -> Row:
    """The row with a value for every other factor: of those accepted, the one that covers most."""
    place = {name: i for i, name in enumerate(sizes)}
    taken = list(row)
    for name in order:

        def gain(i: int, name: str = name, held: Row = row) -> int:
            ends = [((t, held.get(t, 0)), (name, i)) for t in taken]
            return sum(tuple(sorted(two, key=lambda c: place[c[0]])) in open_ for two in ends)

        for i in sorted(range(sizes[name]), key=gain, reverse=True):
            if i == 0 or refusal({**row, name: i}) is None:
                row = {**row, name: i}  # 0 is what it has: nothing to ask
                break
        taken.append(name)
    return row
