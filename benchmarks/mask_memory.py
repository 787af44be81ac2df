"""Peak memory of coding a large mask and of reading it again, over what the mask itself takes.

    python benchmarks/mask_memory.py [--tensors 48]

Random masks of 2^25 weights each, half of them kept, eight flags a byte, as a question about a
model that is read from its files carries them. It fails above --most.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from memory import resident

from fedprune.codec.masks import decode_mask
from fedprune.codec.model_digest import bits_of, mask_bits, model_digest
from fedprune.streaming.packed import PackedMasks

_T = TypeVar("_T")

SHAPE = torch.Size((2**12, 2**13))


def told(what: str, whole: int, most: float, work: Callable[[], _T]) -> _T:
    """What a work gives; print its row, and exit where its peak is above the budget."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    found = work()
    peak, left = ((resident(key) - before) / whole for key in ("VmHWM", "VmRSS"))
    print(f"| {what} | {peak:.2f} | {left:.2f} | {most:g} |", flush=True)
    if peak > most:
        raise SystemExit(f"above the budget: {what}")
    return found


def main() -> None:
    """Print a row for writing and one for reading."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tensors", type=int, default=48, help="of 4 MB of flags each")
    parser.add_argument("--most", type=float, nargs=2, default=[2.2, 0.2], help="masks")
    given = parser.parse_args()
    rng, size = np.random.default_rng(0), SHAPE.numel()
    shapes = {f"{i}.weight": SHAPE for i in range(given.tensors)}
    flags = {name: rng.integers(0, 256, size // 8, dtype=np.uint8) for name in shapes}
    masks, whole = PackedMasks(shapes, flags), given.tensors * size // 8
    print("| | peak, masks | left | budget |\n| --- | ---: | ---: | ---: |")
    bits = told("write", whole, given.most[0], lambda: bits_of(masks, ()))
    back = told(
        "read",
        whole,
        given.most[1],
        lambda: decode_mask(mask_bits(bits), given.tensors * size, shapes, packed=True),
    )
    if model_digest(back, ()) != model_digest(masks, ()):
        raise SystemExit("another mask came back")


if __name__ == "__main__":
    main()
