"""The same run in this process, without Flower: quick, and a debugger stops in your training."""

from __future__ import annotations

from datetime import datetime

from fedprune.library.federating import federate
from fedprune.starter.client_app import train
from fedprune.starter.server_app import KEYS
from fedprune.starter.task import TASK

if __name__ == "__main__":
    folder = f"runs/{datetime.now():%Y%m%d-%H%M%S}"
    result = federate(TASK, train=train, folder=folder, progress=True, **KEYS)
    print(f"{result.summary!r:.80}...\n{folder}/report.html")
