"""``python -m fedprune``: the `fedprune` command."""

from __future__ import annotations

import sys

from fedprune.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
