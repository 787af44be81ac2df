"""Image classification: scikit-learn's digits for quick runs, Fashion-MNIST from local files."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.tasks.losses import classification_loss, f1_names
from fedprune.tasks.networks import ConvNet, Perceptron
from fedprune.tasks.options import Data
from fedprune.tasks.pictures import head_of_pictures, picture_model
from fedprune.tasks.splits import FEWEST_ROWS, cut_later, cut_rows, partition
from fedprune.tasks.task import Part, Shard, Task
from fedprune.tasks.unpacked import arrays_in, gunzipped

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

_SPLITS = {"iid": "", "dirichlet": "label", "shards": "label"}


def _deal(rows: Part, config: Data) -> Sequence[Shard]:
    columns = {"label": rows["labels"].tolist()}
    return cut_later(rows, partition(config, _SPLITS[config.split], columns), config)


def digits(config: Data) -> Sequence[Shard]:
    """1,797 images of 8 x 8 (UCI optical recognition of handwritten digits), in 0..1.

    Raises:
        FileNotFoundError: scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "task=digits: scikit-learn is not installed; allowed: pip install scikit-learn"
        )
    rows = _digits_rows(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz")
    images = rows[:, :-1].float().reshape(-1, 1, 8, 8) / 16
    return _deal({"images": images, "labels": rows[:, -1].long()}, config)


@lru_cache(maxsize=1)
def _digits_rows(path: Path) -> Tensor:
    with gzip.open(path, "rt") as lines:  # to import scikit-learn takes a second
        return torch.from_numpy(np.loadtxt(lines, delimiter=","))


def fashion_mnist(config: Data) -> Sequence[Shard]:
    """The 60,000 training images of 28 x 28 (Xiao et al. 2017), in 0..1, dealt to the clients.

    Each client's test part is cut from its own shard; the official 10,000 are not used.
    """
    return _deal(read_idx_folder(Path(config.data) if config.data else FASHION_FOLDER), config)


def read_idx_folder(folder: Path) -> Part:
    """Images (N, 1, H, W) of bytes and labels (N,) from IDX files, gzipped or not.

    Raises:
        FileNotFoundError: the files are not there, with how to get them, or are none.
    """
    images = _read_idx(_find(folder, "train-images-idx3-ubyte"))
    return _rows(images, _read_idx(_find(folder, "train-labels-idx1-ubyte")), folder)


def _rows(images: Tensor, labels: Tensor, folder: Path) -> Part:
    if images.dim() != 3 or labels.shape != images.shape[:1] or len(labels) < FEWEST_ROWS:
        raise FileNotFoundError(
            f"data={folder}: images {tuple(images.shape)} and labels {tuple(labels.shape)}; "
            f"allowed: (N, H, W) and (N,), N at least {FEWEST_ROWS}"
        )
    return {"images": images.unsqueeze(1), "labels": labels.long()}


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"data={folder}: no {name}[.gz] there; allowed: a folder with Fashion-MNIST's IDX files "
        "(Debian and Ubuntu: apt-get install dataset-fashion-mnist)"
    )


def _read_idx(path: Path) -> Tensor:
    try:
        raw = gunzipped(path) if path.suffix == ".gz" else path.read_bytes()
        if raw[:3] != b"\x00\x00\x08":
            raise ValueError("it does not begin as one")
        rank = raw[3]  # the format: two zero bytes, type, rank, then one big-endian size each
        sizes = np.frombuffer(raw, ">u4", count=rank, offset=4).tolist()
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(sizes)
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileNotFoundError(
            f"data={path}: not an IDX file of unsigned bytes: {error}; allowed: IDX, gzipped or not"
        ) from None
    return torch.from_numpy(values.copy())


def local_images(folder: Path, config: Data, *, side: int) -> Shard:
    """A device's own shard: every ``*.npz`` in its folder, each with `images` and `labels`.

    `images` (N, side, side) of numbers in 0..1, `labels` (N,) of classes by number.

    Raises:
        FileNotFoundError: there is none, or one holds anything else; with what it holds.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise FileNotFoundError(
            f"data={folder}: no *.npz there; allowed: files with arrays images and labels"
        )
    try:
        loaded = [_arrays_of_device(f, side) for f in files]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"data={folder}: {error}; allowed: *.npz files with arrays images "
            f"(N, {side}, {side}) of numbers from 0 to 1 and labels (N,), "
            f"whole numbers from 0 to {_CLASSES - 1}"
        ) from None
    images, labels = (torch.cat(those) for those in zip(*loaded, strict=True))
    return cut_rows(_rows(images, labels, folder), config)


def _arrays_of_device(path: Path, side: int) -> tuple[Tensor, Tensor]:
    """The images, float32, and labels of one file; what is wrong raises ValueError."""
    found, name = arrays_in(path), path.name
    for key in ("images", "labels"):
        if key not in found or found[key].dtype.kind not in "biuf":
            what = f"of type {found[key].dtype}" if key in found else "not there"
            raise ValueError(f"{name}: {key} {what}")
    images, labels = (np.asarray(found[key], np.float64) for key in ("images", "labels"))
    if images.shape[1:] != (side, side) or labels.shape != images.shape[:1]:
        raise ValueError(f"{name}: images {images.shape} and labels {labels.shape}")
    for key, values, most in (("images", images, 1), ("labels", labels, _CLASSES - 1)):
        if not ((values >= 0) & (values <= most)).all():  # of NaN neither holds
            raise ValueError(f"{name}: {key} from {values.min():g} to {values.max():g}")
    if (labels != labels.astype(np.int64)).any():
        raise ValueError(f"{name}: labels that are no whole numbers")
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


def _small_net(
    config: Data, side: int, channels: tuple[int, int], names: tuple[str, ...]
) -> nn.Module:
    if config.model in SMALL_MODELS:
        return picture_model(config, side, 1, _CLASSES, names)
    if config.model == "mlp":
        return Perceptron(side=side, hidden=(128, 64), classes=_CLASSES)
    return ConvNet(side=side, channels=channels, hidden=64, classes=_CLASSES)


DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CLASSES = 10
_MODELS = {
    "cnn": "two convolutions with BatchNorm, two linear layers",
    "mlp": "three linear layers, no BatchNorm",
    "vit": SMALL_MODELS["vit"].summary,
}


def _blank(side: int) -> Callable[[Data], Part]:
    return lambda _: {
        "images": torch.zeros(1, 1, side, side),
        "labels": torch.zeros(1, dtype=torch.long),
    }


IMAGE_DEFAULTS = {"split": "dirichlet", "optimizer": "sgd", "lr": 0.05, "batch_size": 16}


def _images(summary: str, side: int, **own: Any) -> Task:
    """A task of square grey images in ten classes."""
    return Task(
        summary=summary,
        metric="accuracy",
        unit="examples",
        loss=classification_loss,
        output=head_of_pictures,
        models=_MODELS,
        classes=lambda _: _CLASSES,
        dummy=_blank(side),
        extra=f1_names(_CLASSES),
        splits=_SPLITS,
        local=partial(local_images, side=side),
        **own,
    )


DIGITS = _images(
    "scikit-learn's 8 x 8 handwritten digits (small convolutional net): seconds",
    8,
    model=lambda config: _small_net(config, 8, (16, 32), DIGIT_NAMES),
    shards=digits,
    class_names=DIGIT_NAMES,
    defaults={**IMAGE_DEFAULTS, "rounds": 20, "warmup": 6, "cohort": 10, "local_steps": 10},
)

FASHION_MNIST = _images(
    "Fashion-MNIST from a local folder of IDX files (small convolutional net)",
    28,
    model=lambda config: _small_net(config, 28, (8, 16), FASHION_NAMES),
    shards=fashion_mnist,
    class_names=FASHION_NAMES,
    folder=True,
    defaults={**IMAGE_DEFAULTS, "rounds": 24, "warmup": 8, "cohort": 10, "local_steps": 20},
)
