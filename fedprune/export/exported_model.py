"""What is exported, and what every form says and brings beside the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.config import RunConfig
from fedprune.export.brought import dtype_of, give_back
from fedprune.export.card import card, write_card
from fedprune.export.measure import Forward, forward_of, zeros_as_masks
from fedprune.export.quantise import Precision
from fedprune.protocol.models import layout_at
from fedprune.protocol.origin import origin_of
from fedprune.redundancy.calibration import LayerSums
from fedprune.structure.edits import Edits
from fedprune.tasks.catalog import tasks_of
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, count_kept


@dataclass(frozen=True)
class ExportedModel:
    """What is exported.

    Attributes:
        model: in eval mode on the CPU, float32.
        config: of its run; the dense model is rebuilt from it.
        edits: what was done to the dense one's shape.
        masks: True = kept; None: what is not 0.0.
        command: that has its run again; "": not known.
        dtype: of a GGUF file's matrices, a name in `fedprune.export.offered.GGUF_SUMMARIES`; None:
            as the weights were brought.
        sums: what clients summed of its layers' inputs, by weight, for a precision by that.
        precision: how its linear layers are quantised on the way; None: not at all.
    """

    model: nn.Module
    config: RunConfig
    edits: Edits = ()
    masks: Masks | None = None
    precision: Precision | None = None
    command: str = ""
    dtype: str | None = None
    sums: Mapping[str, LayerSums] = field(default_factory=dict)


def about_export(exported: ExportedModel, to: str, **more: Any) -> dict[str, Any]:
    """What a manifest says beside digests: the origin, the edits, the configuration, shapes, ties.

    With it the model is rebuilt by shapes: the dense one, the edits replayed, the tensors put in.
    """
    return {
        **origin_of(exported.config, exported.edits),
        "to": to,
        "class": type(exported.model).__name__,
        "config": exported.config.model_dump(mode="json", exclude_none=True),
        "shapes": {n: list(s) for n, s in shapes_of(exported.model.state_dict()).items()},
        "ties": ties_of(exported.model),
        **more,
    }


def ties_of(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are another's too, to the first name of each."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    pairs = [(name, first.setdefault(id(p), name)) for name, p in named]
    return {name: other for name, other in pairs if name != other}


def probe_of(exported: ExportedModel, examples: int = 2) -> Forward:
    """How the task calls the model, with ids that are not all the same.

    Raises:
        ValueError: the task has no example to show.
    """
    task = tasks_of(exported.config.plugin)[exported.config.task]
    found = forward_of(task, exported.model, exported.config, examples)
    if found is None:
        raise ValueError(f"task={exported.config.task!r}: has no example to check an export with")
    settings: Any = getattr(exported.model, "config", None)
    known = getattr(settings, "vocab_size", 2)

    def varied(name: str, value: Any) -> Any:
        ids = isinstance(value, Tensor) and value.dtype == torch.long and "ids" in name
        return torch.arange(value.numel()).view(value.shape) % known if ids else value

    return replace(found, kwargs={name: varied(name, v) for name, v in found.kwargs.items()})


def give_all_back(exported: ExportedModel, folder: Path) -> None:
    """Write the tokenizer, as the user brought it, and the model card."""
    settings: Any = getattr(exported.model, "config", None)
    plain = settings is not None and not exported.edits and exported.precision is None
    if plain and not (folder / "config.json").is_file():
        described = copy.deepcopy(settings)
        described.dtype = dtype_of(exported.config)
        described.save_pretrained(folder)
    give_back(exported.config, folder, tokenizer_of(exported), settings)
    give_card(exported, folder)


def tokenizer_of(exported: ExportedModel) -> Any:
    """The task's tokenizer; None: it has none."""
    make = tasks_of(exported.config.plugin)[exported.config.task].tokenizer
    return None if make is None else make(exported.config)


def give_card(exported: ExportedModel, folder: Path) -> None:
    """Write the model card."""
    kind = type(exported.model).__name__
    library = next((f.suffix[1:] for f in folder.iterdir() if f.suffix in (".gguf", ".onnx")), "")
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        library = "transformers"
    text = card(
        exported.config, kind, _sparsity(exported), exported.command, library=library or "fedprune"
    )
    write_card(folder, text)


def _sparsity(exported: ExportedModel) -> float:
    """Part of the dense model's prunable weights that is removed."""
    layout = layout_at(exported.config, exported.edits)
    masks = exported.masks or zeros_as_masks(exported.model, layout.prunable)
    return 1 - count_kept(masks) / layout.whole


def type_words(exported: ExportedModel) -> str:
    """What is said of weights that are saved in another type than float32."""
    dtype = str(dtype_of(exported.config)).removeprefix("torch.")
    return "" if dtype == "float32" else f" (weights rounded to {dtype}, as they were brought)"
