"""Federated pruning on simulated clients: ``python simulations/run.py --clients 20``.

The same as ``fedprune run``, for who has the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

# As a script this file's folder is on the path, the repository is not.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from fedprune.commands.run import main, script

__all__ = ["main"]

if __name__ == "__main__":
    script()
