"""What the scripts begin with: the repository on the path, their options, processes of their own.

As a script only its own folder is on the path; here the repository comes before it, and the folder
of the tests' SuperLink.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "engines" / "flower")]


def parser_of(text: str | None, *, whole: bool = False) -> argparse.ArgumentParser:
    """A script's parser, described by the first line of its docstring, or by all of it."""
    if whole:
        shown = argparse.RawTextHelpFormatter
        return argparse.ArgumentParser(description=text, formatter_class=shown)
    return argparse.ArgumentParser(description=(text or "").partition("\n")[0])


def last_line(words: list[str], **environment: str) -> str:
    """What a program says last.

    Raises:
        SystemExit: it fails; with the end of what it said.
    """
    env = {**os.environ, **environment}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def apart(script: str, *words: Any, **environment: str) -> str:
    """What a script says last of these words, in a fresh process."""
    return last_line([sys.executable, script, *map(str, words)], **environment)


def forget_peak() -> None:
    """Let this process's peak be what is resident now (see clear_refs in proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def raised(small: Callable[[], object], whole: Callable[[], object]) -> int:
    """By how many bytes a call raises the peak above what is resident after a smaller one."""
    from fedprune.runtime.process import resident

    small()
    before = resident("VmRSS")
    forget_peak()
    whole()
    return resident("VmHWM") - before


def lines_of(file: Path) -> list[dict[str, Any]]:
    """What was measured before: a line of JSON each."""
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def keep_line(file: Path, line: dict[str, Any]) -> None:
    """Put a line to those, and show it."""
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def load() -> str:
    """How many processors there are, and how busy they are."""
    return f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def processors(root: int) -> dict[int, float]:
    """Processor seconds by id, of a process and those that descend from it (proc(5), stat)."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents[pid] = int(fields[1])
            used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ours(pid: int) -> bool:
        while pid > 1 and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return {pid: seconds for pid, seconds in used.items() if ours(pid)}
