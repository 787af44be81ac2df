"""Models by name: a family built from scratch, or what `transformers` loads."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fedprune.options.refusal import counted, refuse
from fedprune.streaming.blocks import BlockStream, without_weights
from fedprune.streaming.files import MappedFolder, tensors_in
from fedprune.structure.experts import named_as_modules, with_experts
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.structure.families.family import Need
from fedprune.tasks.brought import notes_of_files
from fedprune.tasks.fetching import bounded_by_files, from_pretrained, saved_type, type_of
from fedprune.tasks.gguf_models import note_of
from fedprune.tasks.hub import quiet
from fedprune.tasks.options import Data
from fedprune.tasks.pretrained import place_of
from fedprune.tensors.models import NOTES, SAVED_TYPE

log = logging.getLogger("fedprune")

CLASSIFYING = ("classify", "tag", "image")
"""Purposes whose head has an output a class."""


def build(config: Data, need: Need) -> nn.Module:
    """The model that a configuration names, in the type of `type_of` and without a cache.

    A family is initialised from scratch; a folder or hub id brings its weights, and a head of
    output that it does not bring is initialised.

    Raises:
        FileNotFoundError: it is none of these.
        ValueError: it is a family for another purpose, or a folder that cannot be loaded.
    """
    if config.model in SMALL_MODELS:
        small = SMALL_MODELS[config.model]
        if need.purpose not in small.purposes:
            allowed = ", ".join(n for n, f in SMALL_MODELS.items() if need.purpose in f.purposes)
            raise ValueError(
                f"model={config.model!r}: no model for task {config.task}; "
                f"allowed: {allowed}, a folder, a hub id"
            )
        need = of_size(need, config)
        with quiet():
            model: nn.Module = _auto(need.purpose).from_config(_sized(small.config(need), need))
        small.prepare(model)
        return model
    return loaded(config, need)


def of_size(need: Need, config: Data) -> Need:
    """The need with the depth and the width that a configuration gives a family, if it does."""
    depth, width = config.depth or need.depth, config.width or need.width
    return replace(need, depth=depth, width=width)


def loaded(config: Data, need: Need) -> nn.Module:
    """The model in a folder or of a hub id, in the type of `type_of`.

    A classifier's head of another number of classes is replaced by a fresh one, and said; so is
    what else the files do not hold, see `notes_of_files`.
    """
    model: nn.Module = _streamed(config, need) or _fetched(config, need)
    settings: Any = model.config
    notes = (*getattr(model, NOTES, ()), *note_of(place_of(config.model)))
    if notes:
        setattr(model, NOTES, notes)
    if need.purpose == "image":
        _check_side(settings, config.model, need)
    else:
        settings.use_cache = False
        _check_texts(model, config, need)
    _named(settings, need)
    return model


def _check_side(settings: Any, name: str, need: Need) -> None:
    """Refuse images of a size that a model of transformers does not read."""
    side = getattr(settings, "image_size", None)  # convolutions alone have none
    sides = set(side) if isinstance(side, list | tuple) else {side or need.length}
    if sides != {need.length}:
        reads = " x ".join(map(str, side if isinstance(side, list | tuple) else (side, side)))
        refuse("length", need.length, f"{name} reads images of {reads} pixels", str(min(sides)))


def _check_texts(model: nn.Module, config: Data, need: Need) -> None:
    """Refuse a tokenizer or a length that the model cannot have; tell a classifier its padding."""
    known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if need.vocabulary > known:
        raise ValueError(
            f"model={config.model!r}: embeddings of {counted(known, 'token')} for a tokenizer of "
            f"{need.vocabulary}; allowed: a model that belongs to its tokenizer"
        )
    check_length(model, config.model, need.length)
    if need.purpose in CLASSIFYING and _first_position(model) == 0:
        _pad_with(model, need.pad)


def check_length(model: nn.Module, name: str, length: int) -> None:
    """Refuse more tokens than a model of transformers has positions for.

    Raises:
        ValueError: with the greatest length.
    """
    settings: Any = model.config
    positions = getattr(settings, "max_position_embeddings", None)  # T5 has none
    if positions is None or positions < 0:  # XLNet has none either, and says -1
        return
    longest = positions - _first_position(model)
    if length > longest:
        refuse("length", length, f"{name} reads {longest} tokens", f"8 to {longest}")


def _first_position(model: nn.Module) -> int:
    """The position of the first token: 0, or in RoBERTa and its like the one after the padding's.

    Their table of positions has a row for padding, and as many rows as the configuration says.
    """
    asked: Any = model
    positions = getattr(asked.config, "max_position_embeddings", None)
    words = asked.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    of_positions = [m.padding_idx for m in tables if m.num_embeddings == positions]
    return next((pad + 1 for pad in of_positions if pad is not None), 0)


def _pad_with(model: nn.Module, pad: int) -> None:
    """Let a classifier know what its texts are padded with: it reads the position before that."""
    asked: Any = model
    words = asked.get_input_embeddings()
    for settings in {id(s): s for s in (asked.config, asked.config.get_text_config())}.values():
        settings.pad_token_id = pad
    if isinstance(words, nn.Embedding) and words.padding_idx is not None:
        words.padding_idx = pad  # the token that was taken for padding is to learn like others


def _streamed(config: Data, need: Need) -> nn.Module | None:
    """The model that reads its blocks from its files; None where it is not to be one."""
    if not getattr(config, "streamed", False) or need.purpose in CLASSIFYING:
        return None
    from transformers import AutoConfig

    auto, folder = _auto(need.purpose), Path(place_of(config.model))
    settings = from_pretrained(AutoConfig, config.model, config.task)
    kept = type_of(config)
    try:
        with quiet(), bounded_by_files(folder):
            model = without_weights(lambda: with_experts(auto.from_config(settings, dtype=kept)))
            BlockStream(model, MappedFolder(named_as_modules(tensors_in(folder), model)))
    except Exception as error:  # what a config asks for may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if getattr(config, "stream", "") == "on":
            raise ValueError(f"stream='on': {reason}; allowed: auto, off") from None
        log.info("%s is not streamed: %s", config.model, reason)
        return None
    return model.eval()


def _fetched(config: Data, need: Need) -> Any:
    """The weights as they were saved, but for a head of output of other classes."""
    auto = _auto(need.purpose)
    how: dict[str, Any] = {"dtype": type_of(config), "output_loading_info": True}
    if need.purpose in CLASSIFYING:
        how |= {"num_labels": need.classes, "ignore_mismatched_sizes": True}
    model, about = from_pretrained(auto, config.model, config.task, **how)
    saved = saved_type(config.model, config.task)
    if saved.itemsize < type_of(config).itemsize:
        setattr(model, SAVED_TYPE, saved)
    classifies = need.purpose in CLASSIFYING
    setattr(model, NOTES, notes_of_files(model, about, config.model, need, classifies=classifies))
    return model


def _sized(settings: Any, need: Need) -> Any:
    if need.purpose in CLASSIFYING:
        settings.num_labels = need.classes
    _named(settings, need)
    return settings


def _named(settings: Any, need: Need) -> None:
    """Put the names of the classes where transformers keeps them."""
    if need.names:
        settings.id2label = dict(enumerate(need.names))
        settings.label2id = {name: i for i, name in enumerate(need.names)}


def _auto(purpose: str) -> Any:
    import transformers

    return {
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "classify": transformers.AutoModelForSequenceClassification,
        "tag": transformers.AutoModelForTokenClassification,
        "image": transformers.AutoModelForImageClassification,
    }[purpose]
