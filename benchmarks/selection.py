"""Exact global selection against torch's global_unstructured and a plain sort.

    python benchmarks/selection.py [--sizes 1000000 10000000 100000000] [--repeats 5]

From |weights| in eight tensors to a mask that removes 80 % of them, with torch's default number of
threads for all. Seconds are medians of calls in turn in one warm process (from 50 million weights
on, of one call). Extra memory is how far one call raised the peak of a fresh process.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from at_start import apart, parser_of
from torch import nn
from torch.nn.utils import prune

from fedprune.selection.select import select

SPARSITY = 0.8
LAYERS = 8
OURS = "fedprune.select"

Model = Sequence[nn.Linear]


def by_select(model: Model) -> int:
    """How many weights our masks keep."""
    masks = select({str(i): m.weight.detach().abs() for i, m in enumerate(model)}, SPARSITY)
    return sum(int(mask.sum()) for mask in masks.values())


def by_torch(model: Model) -> int:
    """How many weights torch.nn.utils.prune keeps."""
    prune.global_unstructured(
        [(m, "weight") for m in model], pruning_method=prune.L1Unstructured, amount=SPARSITY
    )
    return sum(int(m.get_buffer("weight_mask").count_nonzero()) for m in model)


def by_sort(model: Model) -> int:
    """How many weights a mask keeps that drops the start of a sorted order."""
    flat = torch.cat([m.weight.detach().abs().reshape(-1) for m in model])
    mask = torch.ones(len(flat), dtype=torch.bool)
    mask[flat.argsort()[: round(SPARSITY * len(flat))]] = False
    return int(mask.sum())


# With the bytes per weight that each needs beside the weights, rounded up from what it took at 10M.
CONTENDERS: dict[str, tuple[Callable[[Model], int], int]] = {
    OURS: (by_select, 16),
    "global_unstructured": (by_torch, 64),
    "torch.sort": (by_sort, 40),
}


def peak() -> int:
    """The most memory that was resident so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def model_of(size: int) -> Model:
    """`size` normal weights in equal layers, filled in place so that no peak hides a later one."""
    layers = [nn.Linear(size // LAYERS, 1, bias=False) for _ in range(LAYERS)]
    for i, layer in enumerate(layers):
        layer.weight.data.normal_(generator=torch.Generator().manual_seed(i))
    return layers


def seconds(name: str, size: int) -> float:
    """What one call takes on a model made for it."""
    model = model_of(size)
    start = time.perf_counter()
    kept = CONTENDERS[name][0](model)
    spent = time.perf_counter() - start
    assert kept == size - round(SPARSITY * size), (name, kept)
    return spent


def extra_bytes(name: str, size: int) -> int:
    """How far a call raises the peak, after one on a small model that loads what is lazy."""
    CONTENDERS[name][0](model_of(1000 * LAYERS))
    model = model_of(size)
    before = peak()
    CONTENDERS[name][0](model)
    return peak() - before


def fits(name: str, size: int) -> bool:
    """Whether this machine has the memory free that a contender needs."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return size * (4 + CONTENDERS[name][1]) < free


def compare(size: int, repeats: int) -> None:
    """Print one row for every contender."""
    entered = [name for name in CONTENDERS if fits(name, size)]
    for name in CONTENDERS.keys() - entered:
        print(f"{size:>12,} {name:<20} left out: it needs more memory than is free here")
    memory = {name: int(apart(__file__, "--memory-of", name, size)) for name in entered}
    times: dict[str, list[float]] = {name: [] for name in entered}
    for _ in range(repeats):
        for name in entered:
            times[name].append(seconds(name, size))
    for name in entered:
        spent = median(times[name])
        print(
            f"{size:>12,} {name:<20} {spent:>9.3f} {spent / median(times[OURS]):>8.1f}"
            f" {memory[name] / 2**20:>10.0f} {memory[name] / memory[OURS]:>8.1f}",
            flush=True,
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(extra_bytes(args.memory_of[0], int(args.memory_of[1])))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, sparsity {SPARSITY}")
    print(f"{'scores':>12} {'':<20} {'seconds':>9} {'x ours':>8} {'extra MiB':>10} {'x ours':>8}")
    for size in args.sizes:
        compare(size, args.repeats if size < 5 * 10**7 else 1)


if __name__ == "__main__":
    main()
