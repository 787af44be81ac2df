"""Classes of a user's own images: ``class/file.png`` or ``client/class/file.png`` in ``--data``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedprune.tasks.dealt_rows import read_on_device, shares
from fedprune.tasks.images import IMAGE_DEFAULTS
from fedprune.tasks.losses import classification_loss, f1_names
from fedprune.tasks.networks import ConvNet, Perceptron
from fedprune.tasks.options import Data
from fedprune.tasks.owners import Population, owned
from fedprune.tasks.pictures import channels_read, head_of_pictures, normalised, picture_model
from fedprune.tasks.splits import FEWEST_ROWS, cut_later
from fedprune.tasks.tables import cached_by_config
from fedprune.tasks.task import Part, Shard, Task
from fedprune.tasks.unpacked import check_claim
from fedprune.tasks.zoo import families_for

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")

SIDE = 32
"""Pixels that an image is high and wide, unless ``--length`` says another number."""

_WAYS = "CLASS/FILE or CLIENT/CLASS/FILE, with names that end in " + ", ".join(_SUFFIXES)

Place = tuple[str, str, str]
"""Whose image it is ("": nobody's), its class, the path of its file."""


def image_places(data: str) -> list[Place]:
    """Every image of a folder, in the order of their paths; hidden files are no images.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: some lie deeper than others, or there is one class.
    """
    root = Path(data)
    if not data or not root.is_dir():
        raise FileNotFoundError(f"data={data!r}: no such folder; allowed: a folder of {_WAYS}")
    inside = sorted(p.relative_to(root) for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES)
    shown = [p for p in inside if not any(part.startswith(".") for part in p.parts)]
    depths = sorted({len(p.parts) for p in shown})
    if not shown:
        raise FileNotFoundError(f"data={data!r}: no image in it; allowed: {_WAYS}")
    if depths not in ([2], [3]):
        odd = next(p for p in shown if len(p.parts) == depths[-1 if depths[-1] > 3 else 0])
        raise ValueError(f"data={data!r}: {odd} lies among others; allowed: all as {_WAYS}")
    return [(*(["", *p.parts[:-1]][-2:]), str(root / p)) for p in shown]  # type: ignore[misc]


@cached_by_config
def _found(config: Data) -> list[Place]:
    return image_places(config.data)


@cached_by_config
def _names_of_classes(config: Data) -> list[str]:
    """The configuration's class names, or the names of the classes' folders, sorted."""
    if config.class_names:
        return list(config.class_names)
    names = sorted({kind for _, kind, _ in _found(config)})
    if empty := sorted(_folders_of_classes(config) - {*names}):
        raise ValueError(
            f"data={config.data!r}: no image in any folder {empty[0]!r} of a class; allowed: "
            "classes with images, or --class-names with all that the model is to know"
        )
    if len(names) < 2:
        raise ValueError(f"data={config.data!r}: one class, {names[0]!r}; allowed: at least two")
    return names


def _folders_of_classes(config: Data) -> set[str]:
    """Names of the folders that lie where those of classes do, hidden ones left out."""
    root, owned = Path(config.data), bool(_found(config)[0][0])
    folders = (p for p in root.glob("*/*" if owned else "*") if p.is_dir())
    shown = (p.relative_to(root).parts for p in folders)
    return {parts[-1] for parts in shown if not any(part.startswith(".") for part in parts)}


def pixels(path: str, side: int, *, grey: bool) -> Tensor:
    """An image as (1 or 3, side, side) bytes, turned as it says, stretched to a square.

    What is transparent is white; of several frames the first is taken.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            check_claim(Path(path), 4 * file.width * file.height)
            if file.mode in ("I", "F") and file.format != "PPM":  # whose 16 bits are an I
                raise ValueError("its 32 bits a pixel do not say which number is white")
            image: Any = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"data={path!r}: {reason}; allowed: an image that can be read") from None
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB").resize((side, side), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.asarray(image).copy())
    return values.unsqueeze(0) if grey else values.permute(2, 0, 1)


def _images(config: Data) -> tuple[list[Place], Tensor]:
    found = _found(config)
    stamp = tuple((path, Path(path).stat().st_mtime_ns) for _, _, path in found)
    return found, _read(stamp, side_of(config), channels_of(config) == 1)


@functools.lru_cache(maxsize=2)
def _read(stamp: tuple[tuple[str, int], ...], side: int, grey: bool) -> Tensor:
    return torch.stack([pixels(path, side, grey=grey) for path, _ in stamp])


def _check_owners(config: Data, owners: Sequence[str]) -> None:
    if config.split == "natural" and not owners[0]:
        raise ValueError(
            "split='natural': no folder says whose image it is; allowed: CLIENT/CLASS/FILE in "
            f"--data, or a split of {', '.join(n for n in _SPLITS if n != 'natural')}"
        )


def _population(config: Data) -> Population:
    """As `fedprune.tasks.dealt_rows.population`, of images."""
    if config.split != "natural":
        return Population(config.clients, config.clients)
    owners = [owner for owner, _, _ in _found(config)]
    _check_owners(config, owners)
    return owned(config, owners, [1] * len(owners), FEWEST_ROWS)[1]


def channels_of(config: Data) -> int:
    """1 for grey images, 3 for images in colour."""
    if config.model in MODELS:
        return 1 if config.model in GREY else 3
    return channels_read(config.model, config.task)


def side_of(config: Data) -> int:
    """Pixels that an image is high and wide."""
    return config.length or SIDE


def _shards(config: Data) -> Sequence[Shard]:
    """Images (N, 1 or 3, side, side) in 0..1 and their classes; cut at random."""
    found, values = _images(config)
    owners, kinds = ([place[i] for place in found] for i in (0, 1))
    _check_owners(config, owners)
    index = {name: i for i, name in enumerate(_names_of_classes(config))}
    if odd := sorted(set(kinds) - index.keys()):
        raise ValueError(
            f"class-names={list(index)}: there is a folder {odd[0]!r}; "
            "allowed: a name for every class in the data"
        )
    labels = torch.tensor([index[kind] for kind in kinds])
    if config.model not in MODELS:
        values = normalised(values.float() / 255, config.model)
    dealt = shares(config, {"client": owners, "label": labels.tolist()}, _SPLITS)
    return cut_later({"images": values, "labels": labels}, dealt, config)


def model(config: Data) -> nn.Module:
    """A small net for images of the side and the colours that the configuration names."""
    side, names = side_of(config), _names_of_classes(config)
    inputs, classes = channels_of(config), len(names)
    if config.model not in NETS:
        return picture_model(config, side, inputs, classes, names)
    if config.model.startswith("mlp"):
        return Perceptron(side, (128, 64), classes, inputs)
    return ConvNet(side, (16, 32), 64, classes, inputs)


def _blank(config: Data) -> Part:
    images = torch.zeros(1, channels_of(config), side_of(config), side_of(config))
    return {"images": images, "labels": torch.zeros(1, dtype=torch.long)}


_SPLITS = {"iid": "", "natural": "client", "dirichlet": "label", "shards": "label"}
GREY = ("cnn-grey", "mlp-grey", "vit-grey")
NETS = {
    "cnn": "two convolutions with BatchNorm, two linear layers; in colour",
    "mlp": "three linear layers, no BatchNorm; in colour",
    "cnn-grey": "as cnn, for grey images",
    "mlp-grey": "as mlp, for grey images",
}
MODELS = {**NETS, **families_for("image", "vit")}

IMAGE_FOLDER = Task(
    summary="classes of images, from folders in --data",
    metric="accuracy",
    unit="examples",
    model=model,
    loss=classification_loss,
    shards=_shards,
    output=head_of_pictures,
    models=MODELS,
    paths=True,
    classes=lambda config: len(_names_of_classes(config)),
    class_names=_names_of_classes,
    dummy=_blank,
    extra=lambda config: f1_names(len(_names_of_classes(config))),
    population=_population,
    splits=_SPLITS,
    folder=True,
    local=read_on_device(_shards, classes=True),
    defaults={
        **IMAGE_DEFAULTS,
        "length": SIDE,
        **{"split": "iid", "rounds": 20, "warmup": 6, "cohort": 10, "local_steps": 20},
    },
)
