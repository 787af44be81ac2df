"""From releases to epsilon: dp-accounting does the sums, this says of what.

Client unit. Two bounds hold, each against an observer of its own, and the smaller one is taken:

- *participation*: who was drawn may be known to everybody. A client's part is then in the releases
  of the rounds in which it was asked, which compose without amplification; epsilon is the largest
  over clients. It holds given the cohorts, since they do not depend on anybody's data, and so
  speaks of the clients of this run, not of one that might have joined it.
- *amplification*: nobody knows who was drawn. All noisy releases of one cohort in one round are one
  sampled event, the same for every client. Booked apart, each would be amplified by a draw of its
  own, and epsilon would come out too small. It is not counted where cohorts are known (secure
  sums, round-robin).

Which of the two is smaller follows from how often the most-drawn client was drawn: that much of the
draw is taken as known under either.

Example unit: a partition's examples meet only the releases of that partition; epsilon is the
largest over partitions (parallel composition, under add or remove one).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.privacy.accounting_terms import REPLACE, AccountingTerms
from fedprune.privacy.events import UNHIDDEN, Event, Profile
from fedprune.privacy.mechanisms import mechanism_of
from fedprune.privacy.release import Occasion, Release

Curve = NDArray[np.float64]
"""Rényi divergence at each of the accountant's orders."""


Accounts = Mapping[str, Sequence[Profile]]
"""By the name of a bound, what the units have been through under it; each bound holds."""

PARTICIPATION, AMPLIFICATION = "participation", "amplification"


@dataclass(frozen=True)
class Tally:
    """All releases so far, as events.

    Attributes:
        shared: by draw (round, audience, partitions): the event without its noise, and Σ z⁻².
        single: by partitions, the events that no draw is shared with.
    """

    shared: Mapping[tuple[Any, ...], tuple[Event, float]] = field(default_factory=dict)
    single: Mapping[tuple[int, ...], Profile] = field(default_factory=dict)

    def accounts(self) -> Accounts:
        """What the units have been through, by every bound that holds; see the module."""
        accounts = {PARTICIPATION: self._participation()}
        if not all(event.unsampled for event, _ in self.shared.values()):
            accounts[AMPLIFICATION] = [self._amplification()]
        return accounts

    def _participation(self) -> list[Profile]:
        """Of every partition, without those that another one has all of, and more."""
        profiles: dict[int, Profile] = {}
        precisions: dict[int, float] = {}
        for draw, (_, precision) in self.shared.items():
            for partition in draw[-1]:
                precisions[partition] = precisions.get(partition, 0.0) + precision
        for partitions, events in self.single.items():
            for partition in partitions:
                profiles.setdefault(partition, Counter()).update(events)
        for partition, precision in precisions.items():
            profiles.setdefault(partition, Counter())[Event(z=_noise(precision))] += 1
        distinct = {frozenset(p.items()): p for p in map(_merged, profiles.values())}
        every = list(distinct.values())
        return [p for p in every if not any(p is not q and _less(p, q) for q in every)] or [
            Counter()
        ]

    def _amplification(self) -> Profile:
        """Of any unit that can be drawn."""
        joint = Counter(replace(event, z=_noise(p)) for event, p in self.shared.values())
        return _merged(sum(self.single.values(), joint))


def _less(one: Profile, other: Profile) -> bool:
    """Whether all that one unit went through costs no more than a part of what another did."""

    def apart(profile: Profile) -> tuple[float, float, float, Profile]:
        plain = sum(n * _precision(e.z) for e, n in profile.items() if e.unsampled)
        rho, xi = (sum(e.spread[i] for e in profile if e.spread) for i in (0, 1))
        rest = {e: n for e, n in profile.items() if not (e.unsampled or e.spread)}
        return plain, rho, xi, Counter(rest)

    *less, few = apart(one)
    *more, many = apart(other)
    return all(x <= y for x, y in zip(less, more, strict=True)) and few <= many


def with_releases(
    tally: Tally, terms: AccountingTerms, occasion: Occasion, releases: Iterable[Release]
) -> Tally:
    """The tally with one question's releases; those that are free or not covered change nothing."""
    shared, single = dict(tally.shared), dict(tally.single)
    asked = occasion.partitions
    for release in releases:
        if not release.noised or occasion.audience == "panel":
            continue
        if terms.unit == "client" and mechanism_of(release.mechanism).joint:
            draw = (occasion.round, occasion.audience, asked)
            event, precision = shared.get(draw, (_drawn(terms, occasion), 0.0))
            shared[draw] = event, precision + _precision(release.z)
        else:
            single[asked] = single.get(asked, Counter()) + _events(terms, release)
    return Tally(shared, single)


def _drawn(terms: AccountingTerms, occasion: Occasion) -> Event:
    """The draw behind a question, as far as it protects."""
    size, population = len(occasion.partitions), occasion.population
    if not terms.amplified or occasion.audience != "cohort":
        return Event()
    if terms.sampling == "poisson":
        return Event(rate=min(1.0, terms.cohort / max(1, population)))
    return Event(sample=(population, size)) if 0 < size < population else Event()


def _events(terms: AccountingTerms, release: Release) -> Profile:
    """The events of a release that shares no draw with others."""
    if release.unit == "example" and terms.unit == "client":
        return Counter({UNHIDDEN: 1})  # a client's other examples are not hidden
    return mechanism_of(release.mechanism).events(release, terms)


def _precision(z: float | None) -> float:
    return math.inf if not z else z**-2


def _noise(precision: float) -> float:
    return math.inf if precision == 0 else precision**-0.5


def _merged(profile: Profile) -> Profile:
    """Gaussian mechanisms on all units are together one, concentrated ones too: exact, quick."""
    plain = sum(n * _precision(e.z) for e, n in profile.items() if e.unsampled)
    spread = [(e.spread, n) for e, n in profile.items() if e.spread]
    out = Counter({e: n for e, n in profile.items() if not (e.unsampled or e.spread)})
    if plain:
        out[Event(z=_noise(plain))] = 1
    if spread:
        rho, xi = (sum(n * both[i] for both, n in spread) for i in (0, 1))
        out[Event(spread=(rho, xi))] = 1
    return out


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

    Args:
        profiles: what the units have been through.
        relation: the neighbouring relation in force.
        delta: probability with which epsilon may not hold.
        orders: of the divergences; none: dp-accounting's own. Fewer give a larger epsilon.

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
