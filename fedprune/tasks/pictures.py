"""Models of transformers that classify images: built from scratch, or from a folder or hub id."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.structure.families.family import Need
from fedprune.tasks.fetching import from_pretrained
from fedprune.tasks.hub import quiet, reachable
from fedprune.tasks.loading import build
from fedprune.tasks.options import Data
from fedprune.tasks.zoo import heads_of


def picture_model(
    config: Data, side: int, channels: int, classes: int, names: Sequence[str] = ()
) -> nn.Module:
    """The model that a configuration names, for images (B, channels, side, side).

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it cannot be loaded, or reads images of another size.
    """
    need = Need("image", 0, side, classes=classes, names=tuple(names), channels=channels)
    return build(config, need)


def head_of_pictures(model: nn.Module) -> tuple[str, ...]:
    """The head of output of a model of images: of this library's nets, or of transformers'."""
    return heads_of(model) if hasattr(model, "get_output_embeddings") else ("head",)


@functools.lru_cache(maxsize=8)
def channels_read(model: str, task: str) -> int:
    """How many channels a model of a folder or hub id reads."""
    from transformers import AutoConfig

    said = getattr(from_pretrained(AutoConfig, model, task), "num_channels", 3)
    if said not in (1, 3):
        raise ValueError(f"model={model!r}: reads images of {said} channels; allowed: 1 or 3")
    return int(said)


def normalised(images: Tensor, model: str) -> Tensor:
    """Images (N, C, H, W) in 0..1 as a model of a folder or hub id was trained on them.

    By the mean and deviation of its ``preprocessor_config.json``; without one as they are.
    """
    said = {} if model in SMALL_MODELS else _preprocessing(model)
    mean, deviation = said.get("image_mean"), said.get("image_std")
    if not said.get("do_normalize", True) or not mean or not deviation:
        return images
    return (images - _by_channel(mean, images)) / _by_channel(deviation, images)


def _by_channel(numbers: Any, images: Tensor) -> Tensor:
    """One number for each channel, of one that is for all or of as many."""
    known = torch.tensor(numbers, dtype=images.dtype).flatten()
    return known[: images.shape[1]].expand(images.shape[1]).view(-1, 1, 1)


@functools.lru_cache(maxsize=8)
def _preprocessing(model: str) -> dict[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    with quiet():
        try:
            found = ImageProcessingMixin.get_image_processor_dict(
                model, local_files_only=not reachable()
            )
        except (OSError, ValueError):  # it has none
            return {}
    said: dict[str, Any] = found[0]
    return said
