"""The Flower ServerApp: ``flwr run .`` lands here, and ends in `main`. Yours to edit."""

from __future__ import annotations

from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedprune.engines.flower.server_app import run_app

KEYS: dict[str, Any] = {}
"""Options, by the names of the command line, for where ``--run-config`` says nothing. YOUR OWN
METHOD goes here: ``{"plugin": "server/mine.py", ...}``, a file with tables of scores, tasks and
what else `docs/extending.md` names; Flower ships it to the devices."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Every round of the run. What you want done before or after it goes here."""
    run_app(grid, context, KEYS)
