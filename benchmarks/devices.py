"""Memory of each program of a run on devices, the SuperLink's database, and seconds and bytes.

    python benchmarks/devices.py [--sizes small,5M,23M,109M,135M] [--devices 2]

Starts a SuperLink with a database and two SuperNodes (or one) on 127.0.0.1, by way of a proxy that
counts what passes, and runs two rounds (one that prunes) of a ViT of each size on digits, with SGD.
Where a run fails, what each program ended with and the end of its log are shown.

Peaks are those that Linux keeps of every process (VmHWM), read five times a second. What a program
takes for a ViT of 50 thousand weights is its baseline: given beside each peak is what is above it,
in multiples of the float32 weights. A SuperLink maps its database into memory once for each of its
connections, and Linux counts each of them: what it has without these stands beside it. The
database's file keeps the size that it had once; "left in it" is what there still is of messages
when the run is over.

A second table has the seconds of a device's client app, mean of all questions of a kind: until it
runs, receiving the question, importing torch and the app, building model and data, computing the
answer, sending it (`device_phases`). What a question takes beyond these is waiting: Flower's
programs look for work at intervals, and start a process for each.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from at_start import HERE, ROOT
from flower import Flower
from wire import Proxy, Unsecured, folders

SIZES = {
    "small": {"width": 64, "depth": 1},
    "5M": {"width": 256, "depth": 6},
    "23M": {"width": 512, "depth": 7},
    "109M": {"width": 768, "depth": 15},
    "135M": {"width": 768, "depth": 19},
}
RUN = {"task": "digits", "model": "vit", "clients": 2, "min-clients": 2, "rounds": 2, "warmup": 0}
RUN |= {"end": 1, "local-steps": 2, "batch-size": 8, "timeout": 3600, "lr": 0.01}
PROGRAMS = {
    "server app": "flwr-serverapp",
    "client app": "flwr-clientapp",
    "SuperLink": "flower-superlink",
    "SuperNode": "flower-supernode",
}


class Watched(threading.Thread):
    """The largest peak of any process of each program, in bytes, and how many there were.

    `own` is the most that the SuperLink had when it was looked at, without what it had mapped of
    its database.
    """

    def __init__(self, flower: Flower) -> None:
        super().__init__(daemon=True)
        self.flower, self.over = flower, threading.Event()
        self.peaks: dict[str, dict[int, int]] = {name: {} for name in PROGRAMS}
        self.own = 0

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
        if PROGRAMS["SuperLink"] in command:
            own = next((line.split()[1] for line in status.splitlines() if "RssAnon" in line), 0)
            self.own = max(self.own, int(own) * 1024)

    def peak(self, name: str) -> int:
        return max(self.peaks[name].values(), default=0)

    def ended(self, name: str) -> bool:
        """Whether a program of this name was there and none is any more."""
        seen = self.peaks[name]
        return bool(seen) and not any(Path(f"/proc/{pid}/status").exists() for pid in list(seen))


def run_in(text: str) -> str:
    """The number of the run that `flwr run` says it has started."""
    return next((word.strip(".") for word in text.split()[::-1] if word.strip(".").isdigit()), "")


def measured(place: Path, size: str, more: str, devices: int = 2) -> dict[str, Any]:
    flower = Unsecured(place / size)
    (place / f"data-{size}").mkdir()
    watched, timed = Watched(flower), place / f"phases-{size}"
    timed.mkdir()
    there = {"clients": devices, "min-clients": devices}
    flower.environment["FEDPRUNE_DEVICE_PHASES"] = str(timed)
    here = [str(HERE / "device_phases"), os.environ.get("PYTHONPATH", "")]
    flower.environment["PYTHONPATH"] = os.pathsep.join(filter(None, here))
    try:
        file = flower.folder / "superlink.db"
        proxy = Proxy(flower.unsecured_superlink())
        for p, folder in enumerate(folders(place / f"data-{size}")[:devices]):
            flower.unsecured_supernode(proxy.port, p, folder)
        watched.start()
        given = " ".join(f"{k}={json.dumps(v)}" for k, v in {**RUN, **there, **SIZES[size]}.items())
        began = time.monotonic()
        done = flower.flwr("run", str(ROOT), "--run-config", f"{given} {more} out='o'")
        path = flower.folder / "o" / "summary.json"
        while not path.is_file():
            gone = any(process.poll() is not None for process in flower.started)
            if gone or watched.ended("server app") or not run_in(done.stdout):
                shown = flower.flwr("log", "--show", run_in(done.stdout))
                said = done.stdout + done.stderr + shown.stdout + shown.stderr
                raise SystemExit(f"{said}\n{ended_early(flower)}")
            time.sleep(1)
        seconds = time.monotonic() - began
        summary = json.loads(path.read_text())
        return {
            "weights": 4 * summary["parameters"],
            "socket": proxy.up + proxy.down,
            "seconds": seconds,
            "database": file.stat().st_size,
            "own": watched.own,
            "left": left_in(file),
            "questions": len(watched.peaks["client app"]) // devices,
            "phases": [json.loads(path.read_text()) for path in sorted(timed.glob("*.json"))],
            **{name: watched.peak(name) for name in PROGRAMS},
        }
    finally:
        watched.over.set()
        flower.stop()


def ended_early(flower: Flower) -> str:
    """What the programs that should still be there ended with, and the end of their logs."""
    codes = [f"{' '.join(each.args)[:80]}: exit {each.poll()}" for each in flower.started]
    logs = [
        (path.name, path.read_text(errors="replace")[-1500:])
        for path in flower.folder.glob("*.log")
    ]
    return "\n".join([*codes, *(f"--- {name}\n{text}" for name, text in logs), killed_for_memory()])


def killed_for_memory() -> str:
    """How many processes the machine has killed for want of memory since it was started."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((line for line in lines if line.startswith("oom_kill ")), "")


def left_in(file: Path) -> int:
    """Bytes of messages that are still in a SuperLink's database; its file does not shrink."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as link:
        found = link.execute("select coalesce(sum(length(content)), 0) from objects").fetchone()
        return int(found[0])


def row_of(size: str, found: dict[str, Any], base: dict[str, Any]) -> str:
    def above(name: str) -> str:
        times = (found[name] - base[name]) / found["weights"]
        return f"{found[name] / 1e6:,.0f} ({times:.1f})"

    programs = " | ".join(above(name) for name in (*PROGRAMS, "own"))
    seconds = f"{found['seconds'] / max(1, found['questions']):.1f}"
    return (
        f"| {size} | {found['weights'] / 1e6:,.0f} | {programs} | {found['database'] / 1e6:,.1f} | "
        f"{found['left'] / 1e6:,.1f} | "
        f"{found['socket'] / 1e6:,.0f} | {found['questions']} | {seconds} |"
    )


PARTS = ("start", "receive", "import", "build", "compute", "send")


def phases_of(size: str, found: dict[str, Any]) -> list[str]:
    """Lines of the second table: seconds by the kind of question."""
    lines = []
    for kind in sorted({each["kind"] for each in found["phases"]}):
        those = [each for each in found["phases"] if each["kind"] == kind]
        for each in those:
            each["compute"] = each["answer"] - each.get("build", 0.0)
        means = [sum(each.get(part, 0.0) for each in those) / len(those) for part in PARTS]
        shown = " | ".join(f"{mean:.1f}" for mean in [*means, sum(means)])
        lines.append(f"| {size} | {kind} | {len(those)} | {shown} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--more", default="", help="more of the run config")
    parser.add_argument("--devices", type=int, choices=(1, 2), default=2)
    given = parser.parse_args()
    shown = (*PROGRAMS, "SuperLink's own")
    names = " | ".join(f"{name}, MB (times)" for name in shown)
    print(f"| size | weights, MB | {names} | database, MB | left in it | socket, MB | n | s each |")
    print("|---|" + "---:|" * (len(shown) + 6))
    base: dict[str, Any] | None = None
    phases = list[str]()
    try:
        for size in given.sizes.split(","):
            with tempfile.TemporaryDirectory() as place:
                found = measured(Path(place), size, given.more, given.devices)
            base = base or found
            print(row_of(size, found, base), flush=True)
            phases += phases_of(size, found)
    finally:
        show_phases(phases)


def show_phases(lines: list[str]) -> None:
    """The second table, also of a run that failed at a later size."""
    print(f"\n| size | question | n | {' | '.join(PARTS)} | all |")
    print("|---|---|" + "---:|" * (len(PARTS) + 2))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
