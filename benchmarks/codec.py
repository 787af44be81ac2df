"""Encoded masks against the entropy bound and against what others send.

    python benchmarks/codec.py [--sizes 1000000 10000000]

The bound is n * H(density) / 8 bytes, for uneven layers the sum over them. Ratios are bytes to the
bound; names and shapes are included in ours. Times are of one call, the best of three.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from at_start import parser_of
from torch import Tensor

from fedprune.codec.masks import decode_mask, encode_mask

SPARSITIES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 0.95, 0.98, 0.99]
UNEVEN = [0.2, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99]

T = TypeVar("T")


def random_mask(size: int, sparsity: float, seed: int) -> Tensor:
    """A mask with exactly that fraction removed, anywhere."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=gen, dtype=torch.int32) >= round(sparsity * size)


def bound(mask: Tensor) -> float:
    """The entropy n * H(density) / 8, in bytes."""
    n, kept = mask.numel(), int(mask.sum())
    return sum(-c * math.log2(c / n) for c in (kept, n - kept) if c) / 8


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """What it returns and the best of three times, in ms."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = function()
        times.append(1e3 * (time.perf_counter() - start))
    return result, min(times)


def compare(label: str, masks: dict[str, Tensor]) -> float:
    """Print one row; the ratio of our bytes to the bound."""
    flat = torch.cat([mask.reshape(-1) for mask in masks.values()]).numpy()
    packed = np.packbits(flat).tobytes()
    limit = sum(map(bound, masks.values()))
    data, encoding = timed(lambda: encode_mask(masks))
    decoded, decoding = timed(lambda: decode_mask(data))
    assert all(torch.equal(masks[name], decoded[name]) for name in masks)
    peers = [len(packed), len(zlib.compress(packed)), 4 * int(flat.sum())]
    ratios = " ".join(f"{size / limit:>9.3f}" for size in [len(data), *peers])
    print(
        f"{len(flat):>11,} {label:>9} {limit:>11,.0f} {len(data):>11,} {ratios}"
        f" {encoding:>7.1f} {decoding:>7.1f}",
        flush=True,
    )
    return len(data) / limit


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 10**7])
    args = parser.parse_args()
    print(
        f"{'weights':>11} {'sparsity':>9} {'bound':>11} {'ours':>11} {'ours/':>9} {'packbits/':>9}"
        f" {'+zlib/':>9} {'int32/':>9} {'enc ms':>7} {'dec ms':>7}"
    )
    ratios = []
    for size in args.sizes:
        for i, s in enumerate(SPARSITIES):
            ratios.append(compare(f"{s:.2f}", {"w": random_mask(size, s, i)}))
        layers = {f"layer{i}": random_mask(size // len(UNEVEN), s, i) for i, s in enumerate(UNEVEN)}
        ratios.append(compare("uneven", layers))
    print(f"largest ratio of ours to the bound: {max(ratios):.4f}")


if __name__ == "__main__":
    main()
