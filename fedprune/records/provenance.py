"""Where a result comes from: when, with which versions, from which code and data, on what."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from fedprune.records.bound import Began

_HOME = Path(__file__).parents[2]
"""The repository, where the package was not installed elsewhere."""

_TIMEOUT = 10
"""Seconds that git may take."""


def provenance_of(began: Began) -> dict[str, str]:
    """What a summary says of where its run comes from, besides its configuration and command.

    Returns:
        ``date`` (UTC, when the summary was written), ``commit`` of the repository that the code
        lies in with "+" behind it where files differ from it ("" without one), ``machine`` and
        ``processors``, and the versions and digests that are known.
    """
    said = {key: value for key, value in began.items() if value and key not in _ELSEWHERE}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processors": str(os.cpu_count() or ""),
        **said,
    }


_ELSEWHERE = {"config.toml", "engine"}
"""What a summary or the folder says in other places."""


def _commit() -> str:
    if not (_HOME / ".git").exists():
        return ""
    found = _git("rev-parse", "HEAD")
    return f"{found}+" if found and _git("status", "--porcelain", "--untracked-files=no") else found


def _git(*arguments: str) -> str:
    """What git prints; "" where there is none, or it refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_HOME), *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
