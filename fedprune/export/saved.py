"""A run's model from its coded file or its folder, and the folder written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from fedprune.codec.coded_file import CODED_NAME, HALVES, from_coded
from fedprune.codec.tensor_file import tensor_file
from fedprune.export.brought import give_back, in_brought_type, save_transformer
from fedprune.export.card import write_card
from fedprune.export.config_keys import Unplain
from fedprune.export.hf_config import plain_model
from fedprune.export.manifest import MANIFEST_NAME, write_manifest
from fedprune.options.plugins import with_code_of
from fedprune.protocol.origin import at_hand, built_by, check_shapes, config_of, with_edits_of
from fedprune.runtime.files import os_errors, write_atomically
from fedprune.runtime.json_text import read_object
from fedprune.runtime.sums import check_sums
from fedprune.streaming.blocks import is_streamed
from fedprune.streaming.files import INDEX, ONE_FILE, MappedFolder, index_of, tensors_in
from fedprune.structure.experts import mixtures_in, named_as_modules
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.claims import filled_by, held_by, held_in
from fedprune.tasks.rescaling import folded
from fedprune.tensors.lazy import bare_of, some_of
from fedprune.tensors.models import frozen_of, load_into, retyped, state_of


def load_saved(folder: str | Path, model: nn.Module | None = None, plugin: str = "") -> nn.Module:
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
    check_sums(Path(folder))
    coded, manifest = Path(folder) / CODED_NAME, Path(folder) / MANIFEST_NAME
    if coded.is_file():
        head, weights, _ = from_coded(coded.read_bytes(), str(coded))
        saved = Path(folder) / "model"
        with filled_by(held_in(weights), str(coded)):
            model = model or built_by(at_hand(with_code_of(plugin, head, coded), saved))
            model = with_edits_of(model, head)
        check_shapes(model, weights, coded)
        retyped(model, weights)
        frozen = frozen_of(model)
        load_into(model, {n: w for n, w in weights.items() if n not in frozen})
        for name, value in frozen.items():
            value.copy_(weights[name])
    elif manifest.is_file():
        head = read_object(manifest.read_bytes())
        origin = with_code_of(plugin, head, manifest) if model is None else {}
        with filled_by(held_by(manifest.parent), str(manifest)):
            model = with_edits_of(model or built_by(at_hand(origin, manifest.parent)), head)
        # As it was saved: where transformers reads it too, with heads that are one layer.
        model = model if head.get("edits") else folded(model)
        load_tensors(model, manifest.parent, as_saved=bool(head.get("kept_type")))
    else:
        raise FileNotFoundError(f"{folder}: neither {CODED_NAME} nor {MANIFEST_NAME} is there")
    return model.eval()


def load_tensors(model: nn.Module, folder: Path, *, as_saved: bool = False) -> None:
    """Fill a model from a folder's safetensors, one file or several.

    With `as_saved` it takes the types of the files, instead of keeping its own.

    Raises:
        ValueError: names or shapes differ; the folder is named.
    """
    places = named_as_modules(tensors_in(folder), model)
    if not places:
        raise FileNotFoundError(f"{folder / ONE_FILE}: gone")
    files, own = MappedFolder(places), model.state_dict(keep_vars=True)
    there = {t.untyped_storage().data_ptr() for name, t in own.items() if name in places}
    odd = [n for n, t in own.items() if t.untyped_storage().data_ptr() not in there]
    odd += [n for n, p in places.items() if n not in own or own[n].shape != p.shape]
    if odd:
        raise ValueError(f"{folder}: does not fit the model: {odd[0]} differs")
    read = {name: files.tensor(name) for name in places}
    if as_saved:
        retyped(model, read)
    with torch.no_grad():
        for name, t in read.items():
            own[name].copy_(t)


def _plain(model: nn.Module) -> nn.Module | None:
    """The model as transformers builds it; None where it is none, or lacks an expert in place."""
    if not hasattr(model, "save_pretrained") or not mixtures_in(model):
        return model if hasattr(model, "save_pretrained") else None
    try:
        return plain_model(model, model, ())
    except Unplain:
        return None


SHARD = 2**30
"""Bytes of a file of several, at most, unless one tensor takes more."""


def _save_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors one after the other, into one safetensors file or several with an index."""
    sizes = {n: t.numel() * t.element_size() for n, t in bare_of(tensors).items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > SHARD:
            shards.append([])
        shards[-1].append(name)
    of = len(shards)
    names = [f"model-{i:05d}-of-{of:05d}.safetensors" for i in range(1, of + 1)]
    names = names if of > 1 else [ONE_FILE]
    for file, those in zip(names, shards, strict=True):
        some = some_of(tensors, those)
        write_atomically(folder / file, tensor_file(some, {"format": "pt"}))
    if of > 1:
        files = {n: file for file, those in zip(names, shards, strict=True) for n in those}
        write_atomically(folder / INDEX, index_of(files, sum(sizes.values())))


def save_folder(model: nn.Module, folder: Path, origin: Mapping[str, Any], text: str = "") -> None:
    """Write safetensors, and the Hugging Face config and tokenizer where there are such.

    A model that has ``save_pretrained`` is loaded by ``from_pretrained`` afterwards, unless its
    shape was edited: a config cannot say that, `fedprune.load` and ``fedprune export`` can. What
    the user brought comes back as it was, the type of the weights too (`fedprune.export.brought`).
    Without a `text` there is no model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(origin)
    task = tasks_of(origin["plugin"])[origin["task"]]
    if is_streamed(model):
        _save_shards(state_of(model), folder)
        if not origin.get("edits"):
            getattr(model, "config").save_pretrained(folder)  # noqa: B009 (of transformers)
    elif not origin.get("edits") and (plain := _plain(folded(model))) is not None:
        save_transformer(plain, folder, config)
    else:
        with os_errors(folder):
            save_model(in_brought_type(model, config), str(folder / "model.safetensors"))
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes it for its owner only
    tokenizer = None if task.tokenizer is None else task.tokenizer(config)
    give_back(config, folder, tokenizer, getattr(model, "config", None))
    if text:
        write_card(folder, text)
    kept = {p.dtype for p in model.parameters()} & HALVES.keys()
    write_manifest(folder, {**origin, **({"kept_type": True} if kept else {})})
