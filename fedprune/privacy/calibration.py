"""How much noise a planned run needs to stay within its budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedprune.privacy.accounting import smallest_epsilon
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.mechanisms import mechanism_of
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.tally import Tally, with_releases

Planned = Sequence[tuple[Occasion, Sequence[Release]]]

_WIDEST = 2.0**30
_NARROWEST = 2.0**-30
_WITHIN = 1e-4
_FEW_ORDERS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 512.0)
"""Enough to come near, in a tenth of the time."""


def calibrated(terms: AccountingTerms, planned: Planned) -> float:
    """The smallest factor of all noise with which the planned releases stay within the budget.

    By Rényi divergences, as the ledger stops the run by them; at most 1.001 times the smallest. The
    terms have a budget; planned are all questions of the run and their releases, with noise in the
    right proportions.

    Returns:
        The factor of every z; 0 where nothing planned costs anything.

    Raises:
        ValueError: no noise is enough: part of the cost does not depend on it.
    """
    budget = terms.budget
    if budget is None or not any(r.noised for _, rs in planned for r in rs):
        return 0.0
    if _epsilon(terms, planned, _WIDEST) > budget:
        raise ValueError(
            f"epsilon={budget:g}: no noise is enough for what is planned; allowed: a larger "
            "--epsilon, or fewer bits by randomised response"
        )
    near = _smallest(lambda f: _epsilon(terms, planned, f, _FEW_ORDERS), budget, 1.0)
    return _smallest(lambda f: _epsilon(terms, planned, f), budget, near)


def _smallest(epsilon: Callable[[float], float], budget: float, start: float) -> float:
    """The smallest factor with epsilon(factor) <= budget, found from near `start`."""
    from scipy.optimize import brentq

    known: dict[float, float] = {}

    def excess(logarithm: float) -> float:
        factor = math.exp(logarithm)
        known[factor] = epsilon(factor)
        return math.log(max(known[factor], 1e-12) / budget)

    high = math.log(start)
    while (more := excess(high)) > 0:
        high += min(max(more, 0.05), 4)
    low = high + max(min(more, -0.05), -4.0)  # epsilon falls about as fast as noise grows
    while low > math.log(_NARROWEST) and (more := excess(low)) <= 0:
        low, high = low + max(min(more, -0.05), -4.0), low
    if low > math.log(_NARROWEST):
        root = brentq(excess, low, high, xtol=_WITHIN, rtol=_WITHIN)
        excess(root + 2 * _WITHIN)  # the root itself may lie on either side
    return min(factor for factor, told in known.items() if told <= budget)


def _epsilon(
    terms: AccountingTerms, planned: Planned, factor: float, orders: tuple[float, ...] = ()
) -> float:
    tally = Tally()
    for occasion, releases in planned:
        tally = with_releases(
            tally, terms, occasion, [mechanism_of(r.mechanism).wider(r, factor) for r in releases]
        )
    return smallest_epsilon(tally.accounts(), terms.relation, terms.delta, orders)
