"""What a card brings: clients at once, bfloat16, pinned memory, several workers on one card.

    python benchmarks/gpu.py [--together 1 8 32 128] [--workers 1 2 4] [--turns 5]

Without a card it says so and ends with 0; `--device cpu` tries the script out on a processor.

Client updates a second of a host whose model is on the card (`benchmarks/batched.py` says what an
update is), for digits' perceptron, one of a million parameters and the default task's LLaMA: one
client after the other and so many at once, in float32 and with `--precision bf16`. Then what of an
update is moving: a change of ten million parameters to the card and back, from memory that is
pinned and from memory that is not. Then several processes on the one card, each with a host of its
own: the updates a second of all. Seconds are of the clock, the median of the turns: a card that
others use is not to be measured on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from at_start import parser_of
from batched import asked, house

TASKS: dict[str, dict[str, Any]] = {
    "digits, mlp": {"task": "digits", "model": "mlp"},
    "perceptron-1000000": {"task": "perceptron-1000000"},
    "shakespeare, llama": {"task": "shakespeare", "local_steps": 2},
}
MOVED = 10_000_000


def seconds(work: Callable[[], object], turns: int) -> float:
    """The median, after a turn that does not count."""
    found = []
    for _ in range(turns + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return median(found[1:])


def updates(keys: dict[str, Any], together: int, turns: int) -> float:
    """Client updates a second with so many at once."""
    clients = 20 if keys["task"] == "shakespeare" else 32
    work = asked(house(keys, clients), min(together, clients))
    return clients / seconds(work, turns)


def alone_and_together(together: Sequence[int], turns: int) -> None:
    """A row for each task and precision."""
    print(f"| model | precision | {' | '.join(f'{n} at once' for n in together)} |")
    print("| --- " * (2 + len(together)) + "|")
    for name, keys in TASKS.items():
        for precision in ("fp32", "bf16"):
            found = [updates({**keys, "precision": precision}, n, turns) for n in together]
            cells = " | ".join(f"{each:,.1f}" for each in found)
            print(f"| {name} | {precision} | {cells} |", flush=True)


def moving(device: torch.device, turns: int) -> None:
    """GB a second to the card and back."""
    there = torch.empty(MOVED, device=device)
    kinds = {"pageable": torch.empty(MOVED)}
    if device.type == "cuda":
        kinds["pinned"] = torch.empty(MOVED).pin_memory()
    for name, here in kinds.items():
        up = seconds(lambda here=here: there.copy_(here, non_blocking=True), turns)
        down = seconds(lambda here=here: here.copy_(there, non_blocking=True), turns)
        size = MOVED * 4 / 1e9
        print(f"{name} memory: {size / up:.1f} GB/s to the card, {size / down:.1f} back")


def sharing(workers: Sequence[int], together: int, turns: int) -> None:
    """Several processes on one card."""
    for name in TASKS:
        found = []
        for count in workers:
            command = [sys.executable, __file__, "--worker", name, "--together", str(together)]
            command += ["--turns", str(turns)]
            if not torch.cuda.is_available():
                command += ["--device", "cpu"]
            running = [
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)
            ]
            found.append(sum(float(each.communicate()[0]) for each in running))
        cells = ", ".join(f"{n}: {each:,.1f}" for n, each in zip(workers, found, strict=True))
        print(f"{name}, updates a second by workers on the card: {cells}", flush=True)


def main() -> int:
    """Everything, or the one line that there is no card."""
    parser = parser_of(__doc__)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--worker", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no card: torch sees no CUDA device here, so nothing was measured")
        return 0
    if options.worker:
        print(updates(TASKS[options.worker], max(options.together), options.turns))
        return 0
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a processor"
    print(f"on {name}, torch {torch.__version__}")
    alone_and_together(options.together, options.turns)
    moving(device, options.turns)
    sharing(options.workers, max(options.together), options.turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
