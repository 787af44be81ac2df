"""Under which terms releases are booked: unit, sampling, delta, budget."""

from __future__ import annotations

from dataclasses import dataclass

SIMULATED = "simulated noise: anyone with the seed can remove it"
"""Said beside every epsilon of a run whose noise is seeded."""

REPLACE, ADD_OR_REMOVE = "replace-one", "add-or-remove-one"
"""Neighbouring data sets: one unit is another one; one unit is there or is not."""


@dataclass(frozen=True)
class AccountingTerms:
    """What the whole ledger has in common.

    Attributes:
        dp: the unit in force: "none", "client", "example".
        sampling: of cohorts: "fixed", "poisson" or "round-robin".
        cohort: clients in a cohort; on average, if it is a Poisson sample.
        population: clients that can be drawn: the panel is not among them.
        delta: probability with which epsilon may not hold.
        budget: largest epsilon, or None.
        noise_source: "seeded" or "secret".
        secure: "none" or "secagg".
        panel: clients that only measure and are not protected.
        keys_follow: keys of secure sums follow from the seed.
        neighbours: of each client in a secure sum of a whole cohort; 0 without.
        threshold: how many of them restore a client's secret.
    """

    dp: str = "none"
    sampling: str = "fixed"
    cohort: int = 1
    population: int = 1
    delta: float = 1e-5
    budget: float | None = None
    noise_source: str = "seeded"
    secure: str = "none"
    panel: int = 0
    keys_follow: bool = False
    neighbours: int = 0
    threshold: int = 0

    @property
    def unit(self) -> str:
        """Whose part epsilon is about; without DP a client's, for votes by randomised response."""
        return "example" if self.dp == "example" else "client"

    @property
    def simulated(self) -> bool:
        """Whatever noise there is follows from the seed."""
        return self.noise_source == "seeded"

    @property
    def relation(self) -> str:
        """The neighbouring relation in force."""
        adds = self.dp == "example" or (self.dp == "client" and self.sampling == "poisson")
        return ADD_OR_REMOVE if adds else REPLACE

    @property
    def amplified(self) -> bool:
        """Being drawn by chance protects: whoever sees the releases does not see the cohort.

        The server of a secure sum, against which such a sum protects, does; and whose turn it is
        (round-robin) is no secret.
        """
        by_chance = self.sampling != "round-robin"
        return by_chance and self.unit == "client" and self.secure == "none"

    @property
    def colluders(self) -> int:
        """How many neighbours a lying server needs to open a client's vector in a secure sum."""
        return 2 * self.threshold - self.neighbours

    @property
    def rate(self) -> float:
        """Probability with which a client is drawn in a round."""
        return min(1.0, self.cohort / max(1, self.population))
