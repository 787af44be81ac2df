"""Releases, and the questions in which they leave, for tests of what is booked of them."""

from collections.abc import Iterable
from typing import Any

from fedprune.privacy.accounting import smallest_epsilon
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.tally import Accounts, Tally, with_releases

Asked = Iterable[tuple[Occasion, Iterable[Release]]]

RAW = Release("counts", ("weight",), reason="weights are sent as they are")


def noisy(z: float | None = 4.0, mechanism: str = "gaussian", **more: Any) -> Release:
    """With noise on it, of a client unless it is said of whom."""
    more = {"quantity": "changes", "unit": "client", "covered": True} | more
    return Release(fields=("values",), mechanism=mechanism, z=z, **more)


def question(
    round_: int,
    partitions: Iterable[int],
    population: int,
    arm: str = "pruned",
    audience: str = "cohort",
    order: int = 0,
    digest: str = "",
) -> Occasion:
    asked = tuple(partitions)
    return Occasion(arm, round_, "tune", order, audience, asked, population, digest)


def tallied(terms: AccountingTerms, asked: Asked) -> Accounts:
    tally = Tally()
    for occasion, releases in asked:
        tally = with_releases(tally, terms, occasion, list(releases))
    return tally.accounts()


def cost(terms: AccountingTerms, asked: Asked) -> float:
    """Epsilon."""
    return smallest_epsilon(tallied(terms, asked), terms.relation, terms.delta)
