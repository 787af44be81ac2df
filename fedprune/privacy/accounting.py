"""From events to epsilon: dp-accounting adds up divergences; this says of which events."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.privacy.accounting_terms import REPLACE
from fedprune.privacy.mechanisms import Event, Profile
from fedprune.privacy.tally import Accounts

Curve = NDArray[np.float64]
"""Rényi divergence at each of the accountant's orders."""


def engine() -> Any:
    """The package dp_accounting, without its warnings about orders that it leaves out.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError:
        raise ValueError(
            "dp: the package dp-accounting is missing; allowed: pip install 'fedprune[privacy]'"
        ) from None
    logging.getLogger("absl").setLevel(logging.ERROR)
    return dp_accounting


def native(event: Event) -> Any:
    """The event as dp-accounting has it; randomised response is of one bit, fair when not true."""
    dp = engine()
    if event.pure is not None:
        return dp.RandomizedResponseDpEvent(2 / (1 + math.exp(event.pure)), 2)
    if event.spread is not None:
        return dp.ZCDpEvent(*event.spread)
    gaussian = dp.GaussianDpEvent(event.z)
    if event.sample is not None:
        return dp.SampledWithoutReplacementDpEvent(*event.sample, gaussian)
    return gaussian if event.rate >= 1 else dp.PoissonSampledDpEvent(event.rate, gaussian)


def relation_for(event: Event, relation: str) -> Any:
    """Under which relation of dp-accounting an event is composed.

    Who answers by randomised response is seen, so that only what is answered can be hidden: of any
    examples that the answer is made from, which covers adding or removing one of them.
    """
    relations = engine().NeighboringRelation
    replaces = relation == REPLACE or event.pure is not None
    return relations.REPLACE_ONE if replaces else relations.ADD_OR_REMOVE_ONE


@lru_cache(maxsize=4096)
def _curve(event: Event, relation: str, orders: tuple[float, ...]) -> Curve:
    """Rényi divergence of one event at every order."""
    dp, at = engine(), np.array(orders)
    if event.pure is None and event.spread is None:
        # Being drawn by chance cannot make a divergence larger: divergences are quasi-convex, and
        # neighbours share the draw. The bound for samples without replacement can lie above this
        # one, and beyond some noise the sampled ones are below the precision of their logarithms.
        plain = np.full(len(at), np.inf) if event.z == 0 else at / (2 * event.z**2)
        if event.unsampled or event.z == 0 or event.z > _FAINT:
            return plain
    accountant = dp.rdp.RdpAccountant(at, relation_for(event, relation))
    curve: Curve = accountant.compose(native(event)).rdp
    if event.spread is not None:  # the theorem is for whole orders
        return np.where(at == np.round(at), curve, np.inf)
    if event.pure is not None:
        return np.maximum(0.0, curve)
    # An order that could not be computed says nothing; below 0 is only rounding.
    return np.minimum(plain, np.maximum(0.0, np.where(np.isnan(curve), np.inf, curve)))


_FAINT = 1e4
"""Noise multiplier beyond which a draw is not counted."""


def rdp_epsilon(
    profiles: Sequence[Profile], relation: str, delta: float, orders: tuple[float, ...] = ()
) -> float:
    """Epsilon at delta by Rényi divergences: the largest over profiles.

    `relation` is the neighbouring one in force, `orders` are of the divergences; none:
    dp-accounting's own. Fewer give a larger epsilon.

    Raises:
        ValueError: dp-accounting is needed and not installed.
    """
    worst = 0.0
    for profile in filter(None, profiles):
        dp = engine()
        at = orders or _usual_orders()
        total = sum(n * _curve(e, relation, at) for e, n in profile.items())
        worst = max(worst, float(dp.rdp.compute_epsilon(at, total, delta)[0]))
    return worst


def smallest_epsilon(
    accounts: Accounts, relation: str, delta: float, orders: tuple[float, ...] = ()
) -> float:
    """`rdp_epsilon` by the bound of the accounts that gives the smallest."""
    return min(rdp_epsilon(told, relation, delta, orders) for told in accounts.values())


@lru_cache(maxsize=1)
def _usual_orders() -> tuple[float, ...]:
    return tuple(map(float, engine().rdp.RdpAccountant().orders))


def skellam_zcdp(mu: float, l1: float, l2: float) -> tuple[float, float]:
    """(rho, xi) so that adding Skellam noise to a sum of integers is (xi, rho)-zCDP.

    Its Rényi divergence of order alpha, a whole number above 1, is at most
    alpha·l2²/(2·mu) + min(((2·alpha - 1)·l2² + 6·l1) / (4·mu²), 3·l1/(2·mu)): Agarwal, Kairouz, Liu
    2021 (arXiv 2110.04995, corollary 4.1 with scale 1). Of the two sides of the minimum this takes
    the one that is smaller at order 8; either holds.

    Args:
        mu: variance of the noise on the sum.
        l1: L1 sensitivity of the sum, in integers.
        l2: its L2 sensitivity.

    Raises:
        ValueError: mu is not positive.
    """
    if not mu > 0:
        raise ValueError(f"mu={mu}: Skellam noise of no variance; allowed: more than 0")
    rho = l2**2 / (2 * mu)
    near = (rho + l2**2 / (2 * mu**2), max(0.0, 6 * l1 - l2**2) / (4 * mu**2))
    far = (rho, 3 * l1 / (2 * mu))
    return min(near, far, key=lambda spread: 8 * spread[0] + spread[1])
