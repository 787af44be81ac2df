"""What a user's folder or hub id brings beside its weights, and gets back as it was."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from fedprune.runtime.files import os_errors, write_atomically
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.fetching import saved_type
from fedprune.tasks.hub import quiet, reachable
from fedprune.tasks.options import Data
from fedprune.tasks.pretrained import gives_back, place_of

GENERATION = "generation_config.json"
PREPROCESSING = "preprocessor_config.json"

TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "chat_template.jinja", "chat_template.json"),
)
"""Files of a tokenizer and of how it writes conversations."""


LARGEST_FILE = "5GB"
"""Weights beyond this are in several files, with an index."""


def is_brought(config: Data) -> bool:
    """Whether the model comes from a folder or a hub id of the user's."""
    task = tasks_of(config.plugin)[config.task]
    named = config.model in SMALL_MODELS or config.model in task.models
    return task.paths and (gives_back(config.model) or not named)


@functools.lru_cache(maxsize=8)
def _file(model: str, name: str) -> Path | None:
    """A file of the folder or hub id; None: it has none of that name."""
    model = place_of(model)
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(
        model,
        name,
        local_files_only=not reachable(),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)


def dtype_of(config: Data) -> torch.dtype:
    """The type that the user's weights are saved in; float32 where nobody brought any."""
    if not is_brought(config):
        return torch.float32
    return saved_type(config.model, config.task)


def save_transformer(model: Any, folder: Path, config: Data) -> None:
    """``model.save_pretrained``, in the type of the user's weights, the model left as it is."""
    saved = rounded(copy.deepcopy(model), dtype_of(config)) if is_brought(config) else model
    if is_brought(config) and getattr(saved, "generation_config", None) is not None:
        # transformers refuses to write what it reads (a temperature without sampling).
        saved.generation_config = type(saved.generation_config)()
    with quiet(), os_errors(folder):
        saved.save_pretrained(folder, max_shard_size=LARGEST_FILE)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes it for its owner only


def in_brought_type(model: Any, config: Data) -> Any:
    """The model as it is, or a copy of it in the type of the weights that the user brought."""
    dtype = dtype_of(config)
    if not is_brought(config) or all(p.dtype == dtype for p in model.parameters()):
        return model
    return rounded(copy.deepcopy(model), dtype)


def rounded(model: Any, dtype: torch.dtype) -> Any:
    """The model in a type, or as it is where a weight would not be finite any more in it.

    Zeros stay zeros; every other weight is the nearest number of that type. What no file holds
    (frequencies of positions) stays as it is, as where `transformers` reads the weights.
    """
    floats = [t for t in model.state_dict(keep_vars=True).values() if t.is_floating_point()]
    if all(bool(t.to(dtype).isfinite().all()) for t in floats):
        for t in floats:
            t.data = t.data.to(dtype)
    return model


def give_back(config: Data, folder: Path, tokenizer: Any, settings: Any) -> None:
    """Make the files of a saved folder those that the user brought, but for what was learned.

    How texts are generated and the tokenizer with its chat template are copied as they are, and
    ``use_cache`` is what it was. Where the user's tokenizer pads with nothing and the model needs
    to know what pads, the tokenizer is saved as it was used, with padding. Without a tokenizer or a
    config these are None.
    """
    path = _file(config.model, "config.json") if is_brought(config) else None
    if path is None:
        _save(tokenizer, folder)
        return
    before = json.loads(path.read_text())
    pads = getattr(settings, "pad_token_id", None) != before.get("pad_token_id")
    names = () if tokenizer is None or (pads and not _has_padding(config.model)) else TOKENIZER
    found = [file for file in (_file(config.model, name) for name in names) if file is not None]
    for file in found:
        shutil.copyfile(file, folder / file.name)
    templates = Path(place_of(config.model)) / "additional_chat_templates"
    if found and templates.is_dir():
        shutil.copytree(templates, folder / templates.name, dirs_exist_ok=True)
    if not found:
        _save(tokenizer, folder)
    if (folder / "config.json").is_file():
        _as_before(before, folder / "config.json")
    (folder / GENERATION).unlink(missing_ok=True)
    for name in (GENERATION, PREPROCESSING):
        beside = _file(config.model, name)
        if beside is not None:
            shutil.copyfile(beside, folder / name)


def _has_padding(model: str) -> bool:
    """Whether the user's tokenizer says itself what pads."""
    paths = [_file(model, name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    return any(json.loads(path.read_text()).get("pad_token") for path in paths if path is not None)


def _save(tokenizer: Any, folder: Path) -> None:
    if tokenizer is not None:
        with os_errors(folder):
            tokenizer.save_pretrained(folder)


def _as_before(before: dict[str, Any], path: Path) -> None:
    """Undo in a saved config what only a run needs."""
    said = json.loads(path.read_text())
    said.pop("use_cache", None)
    if "use_cache" in before:
        said["use_cache"] = before["use_cache"]
    write_atomically(path, f"{json.dumps(said, indent=2, sort_keys=True)}\n".encode())
