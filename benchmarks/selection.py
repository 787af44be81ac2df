"""Exact global selection against torch's global_unstructured and a plain sort.

    python benchmarks/selection.py [--sizes 1000000 10000000 100000000] [--repeats 3]

From |weights| in eight tensors to a mask that removes 80 % of them. Each figure comes from a fresh
process, the contenders in turn: seconds (median), and how far the call raised the peak of resident
memory. All have the same processors and torch's default number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.nn.utils import prune

from fedprune.pruning.selection import select

SPARSITY = 0.8
LAYERS = 8
OURS = "fedprune.select"


def by_select(model: nn.ModuleList) -> int:
    """How many weights our masks keep."""
    masks = select({str(i): m.weight.detach().abs() for i, m in enumerate(model)}, SPARSITY)
    return sum(int(mask.sum()) for mask in masks.values())


def by_torch(model: nn.ModuleList) -> int:
    """How many weights torch.nn.utils.prune keeps."""
    prune.global_unstructured(
        [(m, "weight") for m in model], pruning_method=prune.L1Unstructured, amount=SPARSITY
    )
    return sum(int(m.weight_mask.sum()) for m in model)


def by_sort(model: nn.ModuleList) -> int:
    """How many weights a mask keeps that drops the start of a sorted order."""
    flat = torch.cat([m.weight.detach().abs().reshape(-1) for m in model])
    mask = torch.ones(len(flat), dtype=torch.bool)
    mask[flat.argsort()[: round(SPARSITY * len(flat))]] = False
    return int(mask.sum())


# The bytes per weight that each needs beside the weights, rounded up from what it took at 10M.
CONTENDERS: dict[str, tuple[Callable[[nn.ModuleList], int], int]] = {
    OURS: (by_select, 16),
    "global_unstructured": (by_torch, 64),
    "torch.sort": (by_sort, 40),
}


def peak() -> int:
    """The most memory that was resident so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def model_of(size: int) -> nn.ModuleList:
    """`size` normal weights in equal layers, filled in place so that no peak hides a later one."""
    layers = nn.ModuleList()
    for i in range(LAYERS):
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.empty(size // LAYERS))
        layer.weight.data.normal_(generator=torch.Generator().manual_seed(i))
        layers.append(layer)
    return layers


def measure(name: str, size: int) -> dict[str, float]:
    """Seconds and extra bytes of one call, after one on a small model that loads what is lazy."""
    contender, _ = CONTENDERS[name]
    contender(model_of(1000 * LAYERS))
    model = model_of(size)
    before, start = peak(), time.perf_counter()
    kept = contender(model)
    seconds, extra = time.perf_counter() - start, peak() - before
    assert kept == size - round(SPARSITY * size), (name, kept)
    return {"seconds": seconds, "bytes": extra}


def measured_apart(name: str, size: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def fits(name: str, size: int) -> bool:
    """Whether this machine has the memory free that a contender needs."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return size * (4 + CONTENDERS[name][1]) < free


def compare(size: int, repeats: int) -> None:
    """Print one row for every contender."""
    entered = [name for name in CONTENDERS if fits(name, size)]
    runs = {name: [] for name in entered}
    for _ in range(repeats):
        for name in entered:
            runs[name].append(measured_apart(name, size))
    middle = {
        name: [median(run[key] for run in rows) for key in ("seconds", "bytes")]
        for name, rows in runs.items()
    }
    for name in CONTENDERS:
        if name not in middle:
            print(f"{size:>12,} {name:<20} left out: more memory than is free here")
            continue
        seconds, extra = middle[name]
        slower, larger = (a / b for a, b in zip(middle[name], middle[OURS], strict=True))
        print(
            f"{size:>12,} {name:<20} {seconds:>9.3f} {slower:>8.1f} {extra / 2**20:>9.0f}"
            f" {larger:>8.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, sparsity {SPARSITY}")
    print(f"{'scores':>12} {'':<20} {'seconds':>9} {'x ours':>8} {'extra MiB':>9} {'x ours':>8}")
    for size in args.sizes:
        compare(size, args.repeats)


if __name__ == "__main__":
    main()
