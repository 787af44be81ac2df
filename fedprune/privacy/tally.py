"""The releases so far as events, and what they are together for a unit under each bound.

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

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.mechanisms import UNHIDDEN, Event, Profile, mechanism_of
from fedprune.privacy.release import Occasion, Release

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
            joint = Counter(replace(event, z=_noise(p)) for event, p in self.shared.values())
            accounts[AMPLIFICATION] = [_merged(sum(self.single.values(), joint))]  # of any unit
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
        how = mechanism_of(release.mechanism)
        if terms.unit == "client" and how.joint:
            draw = (occasion.round, occasion.audience, asked)
            event, precision = shared.get(draw, (_drawn(terms, occasion), 0.0))
            shared[draw] = event, precision + _precision(release.z)
        else:
            # A client's other examples are not hidden.
            bare = release.unit == "example" and terms.unit == "client"
            events = Counter({UNHIDDEN: 1}) if bare else how.events(release, terms)
            single[asked] = single.get(asked, Counter()) + events
    return Tally(shared, single)


def _drawn(terms: AccountingTerms, occasion: Occasion) -> Event:
    """The draw behind a question, as far as it protects."""
    size, population = len(occasion.partitions), occasion.population
    if not terms.amplified or occasion.audience != "cohort":
        return Event()
    if terms.sampling == "poisson":
        return Event(rate=min(1.0, terms.cohort / max(1, population)))
    return Event(sample=(population, size)) if 0 < size < population else Event()


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
