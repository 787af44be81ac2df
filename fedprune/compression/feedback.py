"""Error feedback: what rounding kept back is added to what a client sends next.

Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2: the client
sends C(d + e) and keeps e = d + e - C(d + e). So the sum of all it sent and what it keeps is the
sum of all it meant. The residual is the client's own state and depends on its private data; it
never leaves. In simulation it lies in the run's folder, where whichever worker serves the partition
next finds it; on a device in a folder beside its data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedprune.checkpoint import write_atomically
from fedprune.tensors import Masks, Tensors, kept, spread

FOLDER_NAME = "residuals"


@dataclass(frozen=True)
class Residuals:
    """Where residuals are: a file for a partition and round, or this process's memory.

    Attributes:
        folder: None: in memory, which only a run in one process that keeps nothing can do.
        held: the memory.
    """

    folder: Path | None = None
    held: dict[tuple[int, int], Tensors] = field(default_factory=dict)


def recalled(
    residuals: Residuals, partition: int, before: int, weights: Mapping[str, Tensor], masks: Masks
) -> Tensor:
    """The newest residual of a partition from a round earlier than `before`; zeros without one.

    Later rounds are not looked at: after a resume they are another future. What was removed since
    is left out.

    Returns:
        Flat, as `fedprune.tensors.kept` of the weights under the masks.
    """
    found = max((r for r in _rounds(residuals, partition) if r < before), default=None)
    if found is None:
        return torch.zeros(kept(weights, masks).numel())
    tensors = (
        residuals.held[partition, found]
        if residuals.folder is None
        else load(_path(residuals.folder, partition, found).read_bytes())
    )
    return kept(tensors, masks)


def keep(
    residuals: Residuals,
    partition: int,
    at: int,
    flat: Tensor,
    weights: Mapping[str, Tensor],
    masks: Masks,
) -> None:
    """Keep what was not sent in round `at`, and forget what no resume can ask for any more.

    A run goes on from the end of a round, so the newest from before `at` is all it could need.
    """
    tensors = spread(flat, {name: w.shape for name, w in weights.items()}, masks)
    if residuals.folder is None:
        residuals.held[partition, at] = tensors
    else:
        path = _path(residuals.folder, partition, at)
        write_atomically(path, save({n: t.contiguous() for n, t in tensors.items()}))
    earlier = sorted(r for r in _rounds(residuals, partition) if r < at)
    for old in earlier[:-1]:
        if residuals.folder is None:
            del residuals.held[partition, old]
        else:
            _path(residuals.folder, partition, old).unlink()


def _rounds(residuals: Residuals, partition: int) -> list[int]:
    if residuals.folder is None:
        return [r for p, r in residuals.held if p == partition]
    files = residuals.folder.glob(f"{partition}-*.safetensors")
    return [int(file.stem.partition("-")[2]) for file in files]


def _path(folder: Path, partition: int, at: int) -> Path:
    return folder / f"{partition}-{at}.safetensors"
