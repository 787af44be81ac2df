"""What was chosen on validation or reduced, out of a run's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_Row = Mapping[str, Any]


def choices_in(rows: Sequence[_Row]) -> dict[str, Any]:
    """What ``summary.json`` says of them: an adaptive schedule's history, sensitivity, reductions.

    Empty where nothing was chosen or reduced.
    """
    history = [
        {key: value for key, value in told.items() if key != "layers"} for told in tried_in(rows)
    ]
    reduced = next((row["reduced"] for row in rows if row.get("reduced")), None)
    found = {"adaptive": history, "sensitivity": sensitivity_in(rows), "reduced": reduced}
    return {key: value for key, value in found.items() if value}


def tried_in(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    """What an adaptive schedule tried and took, one entry for each round that tried something."""
    return [{"round": row["round"], **row["adaptive"]} for row in rows if row.get("adaptive")]


def sensitivity_in(rows: Sequence[_Row]) -> dict[str, Any] | None:
    """The loss curves of the first round that took them layer by layer, while all was dense."""
    for tried in tried_in(rows):
        if tried["layers"]:
            loss = tried["tried"][0][1]
            return {"round": tried["round"], "loss": loss, "layers": tried["layers"]}
    return None
