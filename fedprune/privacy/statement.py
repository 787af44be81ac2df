"""What a run protects and what it does not, in words, from what really left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedprune.privacy.terms import Terms


def statement(terms: Terms, lines: Sequence[Mapping[str, Any]]) -> str:
    """Who may see what, whose part is hidden, under which assumptions, and what is not hidden.

    Args:
        terms: of the run.
        lines: of its ledger.
    """
    covered = all(line["covered"] for line in lines)
    whose = {"none": "nobody's", "client": "a client's", "example": "an example's"}[terms.dp]
    held = "all of it" if covered else "not all of it"
    return f"Noise hides {whose} part in what left; {held} is covered by a guarantee."
