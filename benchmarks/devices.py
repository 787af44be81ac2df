"""Memory of each program of a run on devices, the SuperLink's database, and seconds and bytes.

    python benchmarks/devices.py [--sizes small,5M,23M,109M,135M] [--database off]

Starts a SuperLink with a database and two SuperNodes on 127.0.0.1, by way of a proxy that counts
what passes, and runs two rounds (one that prunes) of a ViT of each size on digits, with SGD. Peaks
are those that Linux keeps of every process (VmHWM), read five times a second. What a program takes
for a ViT of 50 thousand weights is its baseline: given beside each peak is what is above it, in
multiples of the float32 weights. The database's file keeps the size that it had once; "left in it"
is what there still is of messages when the run is over.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "engines" / "flower"), str(Path(__file__).parent)]

from flower import Flower
from wire import Proxy, folders

SIZES = {
    "small": {"width": 64, "depth": 1},
    "5M": {"width": 256, "depth": 6},
    "23M": {"width": 512, "depth": 7},
    "109M": {"width": 768, "depth": 15},
    "135M": {"width": 768, "depth": 19},
}
RUN = {"task": "digits", "model": "vit", "clients": 2, "min-clients": 2, "rounds": 2, "warmup": 0}
RUN |= {"end": 1, "local-steps": 2, "batch-size": 8, "timeout": 900, "lr": 0.01}
PROGRAMS = {
    "server app": "flwr-serverapp",
    "client app": "flwr-clientapp",
    "SuperLink": "flower-superlink",
    "SuperNode": "flower-supernode",
}


class Watched(threading.Thread):
    """The largest peak of any process of each program, in bytes, and how many there were."""

    def __init__(self, flower: Flower) -> None:
        super().__init__(daemon=True)
        self.flower, self.over = flower, threading.Event()
        self.peaks: dict[str, dict[int, int]] = {name: {} for name in PROGRAMS}

    def run(self) -> None:
        while not self.over.wait(0.2):
            for pid in self.flower.running():
                self._look(pid)

    def _look(self, pid: int) -> None:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # it has ended
            return
        peak = next((line.split()[1] for line in status.splitlines() if "VmHWM" in line), None)
        for name, program in PROGRAMS.items():
            if program in command and peak:
                self.peaks[name][pid] = int(peak) * 1024

    def peak(self, name: str) -> int:
        return max(self.peaks[name].values(), default=0)


def measured(place: Path, size: str, *, database: bool, more: str) -> dict[str, Any]:
    flower = Flower(place / size)
    (place / f"data-{size}").mkdir()
    watched = Watched(flower)
    try:
        file = flower.folder / "superlink.db"
        link = flower.superlink(*(("--database", str(file)) if database else ()))
        proxy = Proxy(int(link.rpartition(":")[2]))
        for p, folder in enumerate(folders(place / f"data-{size}")):
            flower.supernode(f"127.0.0.1:{proxy.port}", p, folder)
        watched.start()
        given = " ".join(f"{k}={json.dumps(v)}" for k, v in {**RUN, **SIZES[size]}.items())
        began = time.monotonic()
        done = flower.flwr("run", str(ROOT), "--stream", "--run-config", f"{given} {more} out='o'")
        seconds = time.monotonic() - began
        path = flower.folder / "o" / "summary.json"
        if not path.is_file():
            raise SystemExit(done.stdout + done.stderr)
        summary = json.loads(path.read_text())
        return {
            "weights": 4 * summary["parameters"],
            "socket": proxy.up + proxy.down,
            "seconds": seconds,
            "database": file.stat().st_size if file.is_file() else 0,
            "left": left_in(file) if file.is_file() else 0,
            "questions": len(watched.peaks["client app"]) // 2,
            **{name: watched.peak(name) for name in PROGRAMS},
        }
    finally:
        watched.over.set()
        flower.stop()


def left_in(file: Path) -> int:
    """Bytes of messages that are still in a SuperLink's database; its file does not shrink."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as link:
        found = link.execute("select coalesce(sum(length(content)), 0) from objects").fetchone()
        return int(found[0])


def row_of(size: str, found: dict[str, Any], base: dict[str, Any]) -> str:
    def above(name: str) -> str:
        times = (found[name] - base[name]) / found["weights"]
        return f"{found[name] / 1e6:,.0f} ({times:.1f})"

    programs = " | ".join(above(name) for name in PROGRAMS)
    seconds = f"{found['seconds'] / max(1, found['questions']):.1f}"
    return (
        f"| {size} | {found['weights'] / 1e6:,.0f} | {programs} | {found['database'] / 1e6:,.1f} | "
        f"{found['left'] / 1e6:,.1f} | "
        f"{found['socket'] / 1e6:,.0f} | {found['questions']} | {seconds} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--database", choices=["on", "off"], default="on")
    parser.add_argument("--more", default="", help="more of the run config")
    given = parser.parse_args()
    names = " | ".join(f"{name}, MB (times)" for name in PROGRAMS)
    print(f"| size | weights, MB | {names} | database, MB | left in it | socket, MB | n | s each |")
    print("|---|" + "---:|" * (len(PROGRAMS) + 6))
    base: dict[str, Any] | None = None
    for size in given.sizes.split(","):
        with tempfile.TemporaryDirectory() as place:
            on = given.database == "on"
            found = measured(Path(place), size, database=on, more=given.more)
        base = base or found
        print(row_of(size, found, base), flush=True)


if __name__ == "__main__":
    main()
