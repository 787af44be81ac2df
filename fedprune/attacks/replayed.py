"""A run's ledger -> the mechanism that its canaries are put through, as it was booked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedprune.attacks.canary import Audited, Draw, Noised
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.ledger_file import partitions_in
from fedprune.privacy.statement import Line
from fedprune.privacy.tally import AMPLIFICATION


def replayed(
    lines: Sequence[Line], terms: AccountingTerms, account: str = AMPLIFICATION
) -> Audited | None:
    """All noised sums of a run, in their draws; None where no sum was noised.

    Clients: what one cohort was asked in one round is one draw, as the ledger counts it; by
    participation, those draws that the client was in that was asked most. Examples: those of the
    partition that was asked most; each release is a draw of its own, in steps.
    Randomised response is not among it: its bits are no sum. Skellam noise is taken for Gaussian
    noise of the same variance, in cohorts that the observer knows, as the ledger takes them.

    `account`: the bound that epsilon is by, see `fedprune.privacy.accounting`.
    """
    noised = [x for x in lines if x["covered"] and (x["z"] or x["spread"])]
    if terms.unit == "example":
        draws = _of_examples([x for x in noised if x["unit"] == "example"])
        return Audited(_counted(draws), "poisson") if draws else None
    chance = terms.amplified and account == AMPLIFICATION
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in noised if chance else _of_one(noised):
        groups.setdefault((line["round"], line["audience"], line["partitions"]), []).append(line)
    sampling = "poisson" if terms.sampling == "poisson" else "fixed"
    draws = [
        Draw(tuple(_sum(x, sampling) for x in group), _rate(group[0], terms) if chance else 1.0)
        for group in groups.values()
    ]
    return Audited(_counted(draws), sampling) if draws else None


def _of_one(lines: Sequence[Line]) -> list[Line]:
    """What the client was in whose part costs most."""
    cost: dict[int, float] = {}
    for line in lines:
        precision = line["z"] ** -2 if line["z"] else 2.0 * line["spread"][0]
        for partition in partitions_in(line["partitions"]):
            cost[partition] = cost.get(partition, 0.0) + precision
    most = max(cost, key=lambda p: (cost[p], -p), default=-1)
    return [line for line in lines if most in partitions_in(line["partitions"])]


def _of_examples(lines: Sequence[Line]) -> list[Draw]:
    asked = Counter(p for line in lines for p in partitions_in(line["partitions"]))
    if not asked:
        return []
    most = max(asked, key=lambda p: (asked[p], -p))
    return [
        Draw((_sum(line, "poisson"),), line["rate"], line["steps"])
        for line in lines
        if most in partitions_in(line["partitions"])
    ]


def _counted(draws: Sequence[Draw]) -> tuple[Draw, ...]:
    """Draws that are alike as one that happens several times."""
    alike = Counter(Draw(d.sums, d.rate) for d in draws for _ in range(d.times))
    return tuple(Draw(d.sums, d.rate, times) for d, times in alike.items())


def _sum(line: Line, sampling: str) -> Noised:
    """A sum by what was booked: how far two sides may be apart, and the noise in such distances.

    Only where that is sqrt(2) clip norms have the values no sign.
    """
    z = line["z"] if line["z"] else 1.0 / math.sqrt(2.0 * line["spread"][0])
    reach, clip = line["sensitivity"], line["clip"]
    if sampling == "poisson":
        return Noised(reach or 1.0, z)
    if clip and reach and math.isclose(reach, math.sqrt(2.0) * clip, rel_tol=1e-6):
        return Noised(clip, z, signed=False)
    return Noised((reach or 2.0) / 2.0, z)


def _rate(line: Line, terms: AccountingTerms) -> float:
    if line["audience"] != "cohort":
        return 1.0
    if terms.sampling == "poisson":
        return terms.rate
    return min(1.0, int(line["asked"]) / max(1, int(line["population"])))
