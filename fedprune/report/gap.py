"""The gap between clients alone and pooled data, and how much of it is closed, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.report.reading import significant

BY_CONSTRUCTION = (
    "It is 1 by construction: sums of everyone are those of pooled data, and nobody trains."
)


def gap_words(told: Mapping[str, Any] | None) -> list[str]:
    """What a summary says of the gap, a sentence each; nothing where it says nothing.

    `told`: ``gap_closure`` of a summary, as `fedprune.records.gap.gap_of` has it.
    """
    if not told:
        return []
    sides = {name: _side(found) for name, found in told["losses"].items()}
    value = told["value"]
    head = f"Not said: {told['withheld']}" if value is None else f"{significant(value)} is closed"
    losses = (
        f"test loss {sides['local']} of clients alone, {sides['federated']} federated, "
        f"{sides['centralised']} of pooled data"
    )
    error = told.get("standard_error")
    width = told.get("denominator")
    about = "" if error is None else f"; local less centralised {significant(width)}"
    about += "" if error is None else f" (standard error {significant(error)})"
    return [f"{head}: {losses}{about}.", *([BY_CONSTRUCTION] if told["by_construction"] else [])]


def _side(found: Mapping[str, Any]) -> str:
    deviation = found["deviation"]
    spread = "" if deviation is None else f" ({significant(deviation)} over {found['count']})"
    return significant(found["mean"]) + spread


ALONE = (
    "The arm centralised is played in this process, by one client with all data: no release of "
    "anybody's, and not in the ledger. Clients of the arm local-only would send nothing; here the "
    "server plays them, and what it asks is in the ledger."
)
"""What is said of arms that no federation plays."""
