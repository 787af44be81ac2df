"""How many clients must collude before a server that lies opens a vector: by trying every lie."""

from itertools import combinations, product

import pytest

from fedprune.secagg.graph import enough, neighbours_of
from fedprune.secagg.terms import Terms

VICTIM = 0


def opens(terms, near, colluding, told):
    """Whether what honest clients give, each for the set it was told, opens the victim's vector."""

    def shares(of, *, summed):
        given = [w for w, members in told.items() if w in near[of] and (of in members) == summed]
        return len(colluding & near[of]) + len(given) >= terms.threshold

    pairs = near[VICTIM] - colluding
    return shares(VICTIM, summed=True) and (
        shares(VICTIM, summed=False) or all(shares(v, summed=False) for v in pairs)
    )


def stories(terms, colluding, sets):
    """All that a server can say: one set or two, and to whom which, so that honest ones answer."""
    every = frozenset(terms.members)
    for some in (*combinations(sets, 1), *combinations(sets, 2)):
        may = [[s for s in some if w in s] or [None] for w in sorted(every - colluding)]
        for which in product(*may):
            told = dict(zip(sorted(every - colluding), which, strict=True))
            told = {w: s for w, s in told.items() if s is not None}
            signing = [{w for w in told if told[w] == s} | (colluding & s) for s in some]
            if not any(
                enough("confirm", every, signed, terms, shared=every, summed=s)
                for s, signed in zip(some, signing, strict=True)
            ):
                yield told


def fewest(terms):
    """The size of the smallest group whose help is enough, wherever it sits."""
    every = frozenset(terms.members)
    near = {m: frozenset(neighbours_of(m, terms)) for m in every}
    sets = [
        frozenset(s)
        for size in range(terms.minimum, len(every) + 1)
        for s in combinations(sorted(every), size)
        if not enough("masked", every, s, terms, shared=every)
    ]
    for size in range(len(every)):
        for group in map(frozenset, combinations(sorted(every - {VICTIM}), size)):
            if any(opens(terms, near, group, told) for told in stories(terms, group, sets)):
                return size
    return len(every)


@pytest.mark.parametrize(
    ("n", "k", "t"),
    [(4, 3, 2), (5, 4, 3), (5, 4, 4), (5, 2, 2), (6, 4, 3), (6, 5, 3), (6, 5, 4), (6, 3, 2)],
)
def test_no_lie_opens_a_vector_with_fewer_colluding_than_is_said(n, k, t):
    terms = Terms(b"s", tuple(range(n)), k, t, 64)
    two = 2 * terms.confirmations - n  # so many members sign twice, if both sets are believed
    assert fewest(terms) == min(t, max(terms.colluders, two)) >= terms.colluders
