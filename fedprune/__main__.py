"""``python -m fedprune``: the `fedprune` command."""

from __future__ import annotations

from fedprune.commands.main import script

if __name__ == "__main__":
    script()
