"""What leaves a party, when, and to whom: the words in which the ledger is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedprune.privacy.mechanisms import NONE, mechanism_of

AUDIENCES = ("cohort", "everyone", "panel", "start")


@dataclass(frozen=True)
class Release:
    """One quantity that leaves a party in one question.

    Attributes:
        quantity: "changes", "scores", "votes", "moments", "metrics", "counts", "model",
            "failures" or "participation".
        fields: its names on the wire: "values", "votes", "totals.loss", ...
        way: "up" leaves clients, "down" leaves the server.
        unit: whose part it hides: "client", "example"; "" where nothing does.
        mechanism: the name of one, see `fedprune.privacy.mechanisms`.
        clip: largest L2 norm of one unit's part.
        sensitivity: largest L2 distance of the sums over two neighbouring data sets.
        z: standard deviation of the noise on the sum, in sensitivities.
        spread: of Skellam noise (rho, xi), see `accounting.skellam_zcdp`.
        denominator: what the sum is divided by, public and fixed.
        steps: noisy steps in this release, for the unit example.
        rate: part of the examples drawn for each of them, each by itself (Poisson).
        pure: epsilon of one bit of randomised response.
        coordinates: how many numbers, or how many bits of randomised response.
        covered: a guarantee covers it, or it costs nothing.
        reason: why it is not covered, or why it costs nothing.

    Raises:
        ValueError: a number that is NaN or negative, an unknown mechanism, or a noisy mechanism
            without the numbers that it is accounted by.
    """

    quantity: str
    fields: tuple[str, ...]
    way: str = "up"
    unit: str = ""
    mechanism: str = NONE.name
    clip: float | None = None
    sensitivity: float | None = None
    z: float | None = None
    spread: tuple[float, float] | None = None
    denominator: float | None = None
    steps: int = 1
    rate: float = 1.0
    pure: float | None = None
    coordinates: int = 0
    covered: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        how = mechanism_of(self.mechanism)
        numbers = {"z": self.z, "pure": self.pure, "rate": self.rate, "steps": self.steps}
        numbers |= dict(zip(("rho", "xi"), self.spread or (), strict=False))
        for name, value in numbers.items():
            if value is not None and (math.isnan(value) or value < 0):
                raise ValueError(f"{name}={value}: not a size of noise; allowed: 0 or more")
        if how.sized and vars(self)[how.sized] is None:
            raise ValueError(f"{how.sized}=None: {self.mechanism} is accounted by it")
        if how is NONE and self.covered:
            raise ValueError("covered=True: no mechanism covers it; allowed: public, with a reason")

    @property
    def noised(self) -> bool:
        """It is covered and costs something."""
        return self.covered and mechanism_of(self.mechanism).noised


@dataclass(frozen=True)
class Occasion:
    """One question: when it is asked, and of whom.

    Attributes:
        arm: the run's arm.
        round: from 1; 0 before the first.
        kind: the question's.
        order: it is the n-th question of this arm in this round, from 0.
        audience: one of `AUDIENCES`. The panel's data is not protected.
        partitions: who is asked, sorted; those who then fail were asked as well.
        population: how many could have been drawn.
        digest: of the question's content: the same question, asked again after a kill and answered
            with the same seeded noise, is the same release.

    Raises:
        ValueError: an unknown audience.
    """

    arm: str
    round: int
    kind: str
    order: int
    audience: str
    partitions: tuple[int, ...]
    population: int
    digest: str = ""

    def __post_init__(self) -> None:
        if self.audience not in AUDIENCES:
            raise ValueError(f"audience={self.audience!r}: allowed: {', '.join(AUDIENCES)}")
