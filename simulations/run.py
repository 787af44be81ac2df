"""Federated pruning on simulated clients: ``python simulations/run.py --clients 20``.

The same as ``fedprune run``, for who has the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

# As a script this file's folder is on the path, the repository is not.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from fedprune.commands.main import run, run_script

_PROGRAM = "run.py"


def main(arguments: list[str]) -> int:
    """Run the command line within this process: see `fedprune.commands.run.main`."""
    return run(arguments, _PROGRAM)


if __name__ == "__main__":
    run_script(sys.argv[1:], _PROGRAM)
