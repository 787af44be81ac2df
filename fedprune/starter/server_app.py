"""The Flower ServerApp: every round of the run. Yours to edit."""

from __future__ import annotations

from typing import Any

from fedprune.engines.flower.server_app import server_app
from fedprune.starter.task import TASK

OPTIONS: dict[str, Any] = {
    "method": "global",
    "score": "taylor",
    "sparsity": 0.8,
    "clients": 8,
    "rounds": 8,
    "lr": 0.1,
    "optimizer": "sgd",
    "local_steps": 8,
}
"""Options of fedprune, for where ``flwr run . --run-config`` says nothing. All of them:
``fedprune run --help-all``; their values: ``fedprune run --list``."""

app = server_app(OPTIONS, TASK)
