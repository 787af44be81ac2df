"""How much noise a planned run needs to stay within its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedprune.privacy.accounting import Tally, added, rdp_epsilon
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.terms import Terms

Planned = Sequence[tuple[Occasion, Sequence[Release]]]

_WIDEST = 2.0**30
_WITHIN = 1e-4


def calibrated(terms: Terms, planned: Planned) -> float:
    """The smallest factor of all noise with which the planned releases stay within the budget.

    By Rényi divergences, as the ledger stops the run by them. Within 1e-4 of the smallest, on the
    safe side.

    Args:
        terms: with a budget.
        planned: every question of the run and its releases, with noise in the right proportions.

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
    low, high = 0.0, 1.0
    while _epsilon(terms, planned, high) > budget:
        low, high = high, 2 * high
    while low == 0.0 and high > 1 / _WIDEST and _epsilon(terms, planned, high / 2) <= budget:
        high /= 2
    low = max(low, high / 2)
    while high > low * (1 + _WITHIN):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _epsilon(terms, planned, middle) > budget else (low, middle)
    return high


def _epsilon(terms: Terms, planned: Planned, factor: float) -> float:
    tally = Tally()
    for occasion, releases in planned:
        tally = added(tally, terms, occasion, [_noisier(r, factor) for r in releases])
    return rdp_epsilon(tally.profiles(), terms.relation, terms.delta)


def _noisier(release: Release, factor: float) -> Release:
    if release.z is not None:
        release = replace(release, z=release.z * factor)
    if release.spread is None:
        return release
    # Its terms fall with the square of the noise and with its fourth power: take the slower one.
    scale = factor ** (-2 if factor >= 1 else -4)
    return replace(release, spread=(release.spread[0] * scale, release.spread[1] * scale))
