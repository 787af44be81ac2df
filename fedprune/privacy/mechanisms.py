"""Mechanisms: how what leaves is protected, or why it needs no noise; one value each, one table.

What a mechanism is to the accountant, to calibration, to the ledger's tables and to the words of
the statement is all here. What its noise does to a sum is in `fedprune.privacy.noise` (Gaussian
and Skellam) and `fedprune.privacy.randomised_response`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedprune.privacy.accounting_terms import REPLACE, AccountingTerms

if TYPE_CHECKING:
    from fedprune.privacy.release import Release


@dataclass(frozen=True)
class Event:
    """One noisy release, or several that share a draw.

    Attributes:
        z: noise multiplier of a Gaussian mechanism; infinite: not one.
        rate: its part of the units is drawn, each by itself.
        sample: (population, drawn) without replacement, or None.
        spread: (rho, xi) of a mechanism that is concentrated (zCDP), or None.
        pure: epsilon of one bit of randomised response, or None.
    """

    z: float = math.inf
    rate: float = 1.0
    sample: tuple[int, int] | None = None
    spread: tuple[float, float] | None = None
    pure: float | None = None

    @property
    def unsampled(self) -> bool:
        """It is a Gaussian mechanism on all units, and only that."""
        return self.rate >= 1 and not (self.sample or self.spread) and self.pure is None


Profile = Counter[Event]
"""What one unit has been through: events, and how often."""

UNHIDDEN = Event(z=0.0)
"""Of a unit that nothing hides: epsilon is infinite."""


@dataclass(frozen=True)
class Mechanism:
    """One way in which a release is protected.

    Attributes:
        name: in the ledger.
        sized: the number of a release that says how much noise there is; "": there is none, and the
            release costs nothing or is not covered.
        events: what an accountant composes of a release by itself.
        joint: the releases of one cohort in one round are a single event that shares the draw.
        wider: the release with so many times the standard deviation of noise.
        words: how a table says that number.
        protection: by the unit that it hides, the protection of `fedprune.privacy.statement` that
            it stands for.
        gap: what it does not hide, in words; "": nothing of its own.
    """

    name: str
    sized: str = ""
    events: Callable[[Release, AccountingTerms], Profile] = lambda *_: Counter()
    joint: bool = False
    wider: Callable[[Release, float], Release] = lambda release, _: release
    words: str = "{}"
    protection: Mapping[str, str] = field(default_factory=dict)
    gap: str = ""

    @property
    def noised(self) -> bool:
        """There is noise, which costs something."""
        return bool(self.sized)


def _steps(release: Release, _: AccountingTerms) -> Profile:
    """Gaussian mechanisms, each on its part of the examples."""
    return Counter({Event(z=release.z or 0.0, rate=release.rate): release.steps})


def _answered(release: Release, terms: AccountingTerms) -> Profile:
    """A bit a unit; who answers is seen, so that being there is not hidden."""
    if terms.unit == "client" and terms.relation != REPLACE:
        return Counter({UNHIDDEN: 1})
    return Counter({Event(pure=release.pure): max(1, release.coordinates)})


def _times_z(release: Release, factor: float) -> Release:
    return replace(release, z=(release.z or 0.0) * factor)


def _times_spread(release: Release, factor: float) -> Release:
    """Its terms fall with the square of the noise and with its fourth power: take the slower one.

    Alone, the first one is all that is planned with.
    """
    assert release.spread is not None  # a release by Skellam noise has one
    rho, xi = release.spread
    scale = factor ** (-2 if factor >= 1 or not xi else -4)
    wider = release if release.z is None else _times_z(release, factor)
    return replace(wider, spread=(rho * scale, xi * scale))


NONE = Mechanism("none")
"""As it is."""

_ROUNDING = "what rounding tells: Gaussian noise is added in floating point (Mironov 2012)"

GAUSSIAN = Mechanism(
    "gaussian",
    sized="z",
    events=lambda release, terms: _steps(replace(release, rate=1.0), terms),
    joint=True,
    wider=_times_z,
    protection={"client": "central noise", "example": "noise on examples"},
    gap=_ROUNDING,
)
"""Noise on a sum: of the server on clients' parts, or of a client on its examples'."""

SAMPLED_GAUSSIAN = Mechanism(
    "sampled-gaussian",
    sized="z",
    events=_steps,
    wider=_times_z,
    protection={"example": "noise on examples"},
    gap=_ROUNDING,
)
"""Steps of DP-SGD, each on examples that are drawn by chance."""

SKELLAM = Mechanism(
    "skellam",
    sized="spread",
    events=lambda release, _: Counter({Event(spread=release.spread): 1}),
    wider=_times_spread,
    words="rho {}",
    protection={"client": "secure sums with noise", "example": "secure sums with noise"},
)
"""Whole numbers that clients add together, under a secure sum."""

RANDOMISED_RESPONSE = Mechanism(
    "randomised-response",
    sized="pure",
    events=_answered,
    words="epsilon {} a bit",
    protection={"client": "randomised response"},
)
"""Bits of a vote that may be flipped."""

POST_PROCESSING = Mechanism("post-processing")
"""Made of what was released before: costs nothing, and says why."""

PUBLIC = Mechanism("public")
"""Not made from protected data: costs nothing, and says why."""

MECHANISMS = {
    m.name: m
    for m in (
        *(NONE, GAUSSIAN, SKELLAM, SAMPLED_GAUSSIAN, RANDOMISED_RESPONSE, POST_PROCESSING, PUBLIC),
    )
}
"""By the name in the ledger."""


def mechanism_of(name: str) -> Mechanism:
    """The mechanism of this name; ValueError: there is none."""
    if name not in MECHANISMS:
        raise ValueError(f"mechanism={name!r}: allowed: {', '.join(MECHANISMS)}")
    return MECHANISMS[name]


def is_noised(line: Mapping[str, Any]) -> bool:
    """Whether a line of the ledger is covered and costs something."""
    return bool(line["covered"]) and mechanism_of(line["mechanism"]).noised
