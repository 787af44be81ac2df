"""Error feedback: what rounding kept back is added to what a client sends next.

Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2: the client
sends C(d + e) and keeps e = d + e - C(d + e). So the sum of all it sent and what it keeps is the
sum of all it meant. A change that is in no average (the answer was lost or refused, the round was
void) was never sent: the server says with every question which change of the client counted last,
and the client goes on from what it kept back of that one. The residual is the client's own state
and depends on its private data; it never leaves. In simulation it lies in the run's folder, where
whichever worker serves the partition next finds it; on a device in a folder beside its data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedprune.runtime.files import read_verified, write_verified
from fedprune.tensors import Masks, Tensors, gathered, scattered

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
    residuals: Residuals, partition: int, at: int, weights: Mapping[str, Tensor], masks: Masks
) -> Tensor:
    """What a partition kept back in round `at`; zeros for round 0. What was removed since is out.

    Returns:
        Flat, as `fedprune.tensors.gathered` of the weights under the masks.

    Raises:
        ValueError: nothing of that round is there, or it is damaged.
    """
    if not at:
        return torch.zeros(gathered(weights, masks).numel())
    if at not in _rounds(residuals, partition):
        where = residuals.folder or "this process"
        raise ValueError(f"what was kept back in round {at} is not in {where}")
    tensors = (
        residuals.held[partition, at]
        if residuals.folder is None
        else _loaded(_path(residuals.folder, partition, at))
    )
    return gathered(tensors, masks)


def _loaded(path: Path) -> Tensors:
    content = read_verified(path)
    try:
        return load(content)
    except Exception as error:  # sound bytes of something else: safetensors raises what it likes
        raise ValueError(f"{path.name}: nothing that was kept back: {error!r}"[:300]) from None


def keep(
    residuals: Residuals,
    partition: int,
    at: int,
    since: int,
    flat: Tensor,
    weights: Mapping[str, Tensor],
    masks: Masks,
) -> None:
    """Keep what was not sent in round `at`, and forget what nobody can ask for any more.

    That is all but this and what was kept in round `since`, from which the partition went on:
    whether this change counts is not known yet, and after a resume `since` is what counted last.
    """
    tensors = scattered(flat, {name: w.shape for name, w in weights.items()}, masks)
    if residuals.folder is None:
        residuals.held[partition, at] = tensors
    else:
        path = _path(residuals.folder, partition, at)
        write_verified(path, save({n: t.contiguous() for n, t in tensors.items()}))
    for old in set(_rounds(residuals, partition)) - {at, since}:
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
