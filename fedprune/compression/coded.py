"""The coded file: a pruned model as its mask and its kept values, and how to get it back.

Layout: 8 bytes of magic, a 4-byte length, a JSON head, the encoded mask, the kept values (float32,
little-endian), and the SHA-256 of all before it. "Bytes on disk" is the size of this file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from fedprune.compression.bounded import most_weights, read_object
from fedprune.compression.brought import give_back, save_transformer
from fedprune.compression.card import write_card
from fedprune.compression.manifest import MANIFEST_NAME, write_manifest
from fedprune.compression.masks import decode_mask, encode_mask
from fedprune.compression.wire import whole_number
from fedprune.config import RunConfig, configure
from fedprune.plugins import tasks_of, with_code_of
from fedprune.pruning.depgraph import recognised
from fedprune.pruning.edits import Edits, from_json, to_json
from fedprune.pruning.surgery import reshaped
from fedprune.tasks.building import built
from fedprune.tasks.families import FAMILIES
from fedprune.tasks.rescaling import folded
from fedprune.tasks.task import class_names_of
from fedprune.tensors import (
    Masks,
    Tensors,
    as_bytes,
    frozen_of,
    kept,
    load_into,
    masked,
    shapes_of,
    spread,
    state_of,
)
from fedprune.verified import os_errors

MAGIC = b"FEDPRUN1"
CODED_NAME = "model.fedprune"


_ORIGIN = (
    *("task", "plugin", "model", "depth", "width", "length", "data", "encoding"),
    *("text_column", "label_column", "class_names"),
)
_FOUND = ("structure", "unit")  # how the channels were found that the edits cut


def origin_of(config: RunConfig, edits: Edits = ()) -> dict[str, Any]:
    """How a model is built: keys of the configuration for the dense one, and what was edited.

    The names of its classes are among the keys, as the task knows them: so a model that learned
    the classes of some data is built again without the data.
    """
    keys = _ORIGIN if config.structure == "auto" else (*_ORIGIN, *_FOUND)
    names = class_names_of(tasks_of(config.plugin)[config.task], config)
    values = {**{key: vars(config)[key] for key in keys}, "class_names": list(names)}
    return {key: value for key, value in values.items() if value not in (None, "", [])} | {
        "plugin": config.plugin,
        **({"edits": json.loads(to_json(edits))} if edits else {}),
    }


def coded_size(
    config: RunConfig, weights: Mapping[str, Tensor], masks: Masks, edits: Edits = ()
) -> int:
    """Bytes of the coded file that these weights would make under these masks."""
    return len(to_coded(origin_of(config, edits), masked(weights, masks), masks))


def to_coded(origin: Mapping[str, Any], weights: Mapping[str, Tensor], masks: Masks) -> bytes:
    """The file's content.

    Args:
        origin: how to build the dense model, see `origin_of`.
        weights: the model's state and its frozen parameters, float32, 0.0 where a mask is False.
        masks: True = kept.
    """
    mask = encode_mask(masks)
    head = {
        **origin,
        "mask_bytes": len(mask),
        "shapes": {n: list(t.shape) for n, t in weights.items()},
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    values = as_bytes(kept(weights, masks).float())
    body = MAGIC + len(text).to_bytes(4, "little") + text + mask + values
    return body + hashlib.sha256(body).digest()


def from_coded(data: bytes, name: str = "coded file") -> tuple[dict[str, Any], Tensors, Masks]:
    """Head, weights and masks of a coded file's content.

    Memory is bounded by the size of the content (`fedprune.compression.bounded.most_weights`).

    Raises:
        ValueError: it is no coded file, damaged or malformed; `name` is in the message. Nothing
            else is raised, whatever the bytes are.
    """
    if sys.byteorder != "little":
        raise ValueError(f"{name}: coded files are little-endian, this machine is not")
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{name}: not a fedprune coded file")
    body, checksum = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != checksum:
        raise ValueError(f"{name}: damaged, its checksum does not fit its content")
    try:
        return _content(body)
    except Exception as error:  # sound bytes of another writer: what they raise is not known
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{name}: malformed: {reason}") from None


def _content(body: bytes) -> tuple[dict[str, Any], Tensors, Masks]:
    start, most = len(MAGIC) + 4, most_weights(len(body))
    end = start + int.from_bytes(body[len(MAGIC) : start], "little")
    head = read_object(body[start:end])
    values_at = end + whole_number(head, "mask_bytes")
    if values_at > len(body):
        raise ValueError("it is cut short")
    shapes = {n: torch.Size(s) for n, s in head["shapes"].items()}
    if any(min(s, default=0) < 0 for s in shapes.values()):
        raise ValueError("a tensor of less than nothing")
    if sum(s.numel() for s in shapes.values()) > most:
        raise ValueError(f"it claims more than {most} values")
    masks = decode_mask(body[end:values_at], most)
    if any(shapes.get(n) != mask.shape for n, mask in masks.items()):
        raise ValueError("a mask of another shape than its tensor")
    values = torch.from_numpy(np.frombuffer(body[values_at:], np.float32).copy())
    return head, spread(values, shapes, masks), masks


def load(folder: str | Path, model: nn.Module | None = None, plugin: str = "") -> nn.Module:
    """The model of a run folder or of a model folder, in eval mode on the CPU.

    A run folder's model is rebuilt from its coded file, a model folder's is read from safetensors;
    both give the same bits.

    Args:
        folder: ``runs/<name>`` or ``runs/<name>/model``.
        model: filled and returned instead of a model built by the task that made the folder;
            needed where that task is not in `fedprune.tasks.catalog.TASKS` any more.
        plugin: the Python file with its task, where one made the folder: the folder's own word
            for it runs nothing.

    Raises:
        FileNotFoundError: neither kind of folder.
        ValueError: the file is damaged or does not fit the model, or names a plug-in.
    """
    coded, manifest = Path(folder) / CODED_NAME, Path(folder) / MANIFEST_NAME
    if coded.is_file():
        head, weights, _ = from_coded(coded.read_bytes(), str(coded))
        saved = Path(folder) / "model"
        model = model or _built(_at_hand(with_code_of(plugin, head, coded), saved))
        model = _edited(model, head)
        _check_shapes(model, weights, coded)
        frozen = frozen_of(model)
        load_into(model, {n: w for n, w in weights.items() if n not in frozen})
        for name, value in frozen.items():
            value.copy_(weights[name])
    elif manifest.is_file():
        head = json.loads(manifest.read_text())
        origin = with_code_of(plugin, head, manifest) if model is None else {}
        model = _edited(model or _built(_at_hand(origin, manifest.parent)), head)
        # As it was saved: where transformers reads it too, with heads that are one layer.
        model = model if head.get("edits") else folded(model)
        load_tensors(model, manifest.parent)
    else:
        raise FileNotFoundError(f"{folder}: neither {CODED_NAME} nor {MANIFEST_NAME} is there")
    return model.eval()


def load_tensors(model: nn.Module, folder: Path) -> None:
    """Fill a model from a folder's ``model.safetensors``.

    Raises:
        ValueError: names or shapes differ; the folder is named.
    """
    try:
        load_model(model, folder / "model.safetensors")
    except RuntimeError as error:  # torch's way to say that
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: does not fit the model: {reason}") from None


def blank(origin: Mapping[str, Any], plugin: str = "") -> nn.Module:
    """The model that the head of a coded file describes, its values as the task makes them.

    Raises:
        ValueError: it is of a plug-in, and none is given.
    """
    return _edited(_built(_at_hand(with_code_of(plugin, origin, "a coded file"))), origin)


def _built(origin: Mapping[str, Any]) -> nn.Module:
    tasks = tasks_of(origin.get("plugin", ""))
    if origin["task"] not in tasks:
        raise ValueError(f"task {origin['task']!r} is not known here; pass the model to load()")
    given = {key: origin[key] for key in (*_ORIGIN, *_FOUND) if key in origin}
    config, task = configure(given), tasks[origin["task"]]
    return recognised(built(task, config), config, task)


def _at_hand(origin: Mapping[str, Any], saved: Path | None = None) -> Mapping[str, Any]:
    """The origin of a model, with the folder it was saved in for one of the user's that is gone.

    A config says nothing of edits: the model they begin with is that of the user's folder only.

    Raises:
        FileNotFoundError: there is such a folder no more, and the model is a cut one.
    """
    name = str(origin.get("model", ""))
    if not name or Path(name).is_dir() or name in FAMILIES:
        return origin
    if saved is not None and not origin.get("edits") and (saved / "config.json").is_file():
        return {**origin, "model": str(saved)}
    if Path(name).is_absolute() or name.startswith("."):
        raise FileNotFoundError(
            f"model={name!r}: no such folder, and what was cut of its model is put together from "
            "it; allowed: that folder where it was, or load(folder, model)"
        )
    return origin


def _edited(model: nn.Module, origin: Mapping[str, Any]) -> nn.Module:
    return reshaped(model, from_json(json.dumps(origin.get("edits", []))))


def _check_shapes(model: nn.Module, weights: Tensors, path: Path) -> None:
    here, there = shapes_of({**state_of(model), **frozen_of(model)}), shapes_of(weights)
    if here != there:
        odd = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
        raise ValueError(f"{path}: does not fit the model: {odd[0]} differs")


def save_folder(model: nn.Module, folder: Path, origin: Mapping[str, Any], text: str = "") -> None:
    """Write safetensors, and the Hugging Face config and tokenizer where there are such.

    A model that has ``save_pretrained`` is loaded by ``from_pretrained`` afterwards, unless its
    shape was edited: a config cannot say that, `load` and ``fedprune export`` can. What the user
    brought comes back as it was, the type of the weights too (`fedprune.compression.brought`).

    Args:
        model: what is saved.
        folder: where to.
        origin: see `origin_of`.
        text: of its model card; "": none is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = configure({k: origin[k] for k in (*_ORIGIN, *_FOUND) if k in origin})
    task = tasks_of(origin["plugin"])[origin["task"]]
    if hasattr(model, "save_pretrained") and not origin.get("edits"):
        save_transformer(folded(model), folder, config)
    else:
        with os_errors(folder):
            save_model(model, str(folder / "model.safetensors"))
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only
    tokenizer = None if task.tokenizer is None else task.tokenizer(config)
    give_back(config, folder, tokenizer, getattr(model, "config", None))
    if text:
        write_card(folder, text)
    write_manifest(folder, origin)
