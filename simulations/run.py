"""Federated pruning on simulated clients: ``python simulations/run.py --clients 20``.

The same as ``fedprune run``, for who has the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

# As a script this file's folder is on the path, the repository is not.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from fedprune.commands.run_options import told_at_once

_PROGRAM = "run.py"


def main(arguments: list[str]) -> int:
    """Run the command line within this process: see `fedprune.commands.run.main`."""
    if code := told_at_once(arguments, _PROGRAM):
        return code
    from fedprune.commands.run import main as run  # with torch

    return run(arguments, _PROGRAM)


if __name__ == "__main__":
    if code := told_at_once(sys.argv[1:], _PROGRAM):
        sys.exit(code)
    from fedprune.commands.run import script

    script(sys.argv[1:], _PROGRAM)
