"""A finished model in the forms that others read, each checked before it counts as written."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from fedprune.codec.coded_file import CODED_NAME, HALVES, to_coded
from fedprune.config import RunConfig
from fedprune.export.brought import (
    dtype_of,
    give_back,
    rounded,
    save_transformer,
)
from fedprune.export.card import card, write_card
from fedprune.export.folders import load, model_outputs
from fedprune.export.hf_config import Unplain, plain_model
from fedprune.export.manifest import write_manifest
from fedprune.export.measure import Forward, forward_of, zeros_as_masks
from fedprune.export.onnx import write_onnx
from fedprune.export.quantise import (
    Precision,
    is_quantised,
    quantisable,
    quantise,
)
from fedprune.protocol.models import dense_model, layout_at
from fedprune.protocol.origin import origin_of
from fedprune.runtime.files import os_errors, write_atomically
from fedprune.structure.edits import Edits
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.hub import quiet
from fedprune.tasks.rescaling import folded
from fedprune.tasks.task import output_of
from fedprune.tensors import Masks, count_kept, frozen_of, masked, shapes_of, state_of

TENSORS_NAME = "model.safetensors"


@dataclass(frozen=True)
class Cargo:
    """What is exported.

    Attributes:
        model: in eval mode on the CPU, float32.
        config: of its run; the dense model is rebuilt from it.
        edits: what was done to the dense one's shape.
        masks: True = kept; None: what is not 0.0.
        command: that has its run again; "": not known.
        precision: how its linear layers are quantised on the way; None: not at all.
    """

    model: nn.Module
    config: RunConfig
    edits: Edits = ()
    masks: Masks | None = None
    precision: Precision | None = None
    command: str = ""


def export(cargo: Cargo, to: str, folder: Path) -> str:
    """Write a model into a fresh folder, with a manifest, and read it again.

    Args:
        cargo: what.
        to: a name in `EXPORT_FORMATS`.
        folder: must not be there yet.

    Returns:
        What was checked, in words.

    Raises:
        FileExistsError: the folder is there.
        ValueError: the form cannot hold this model (the message names one that can), or what was
            read again is not what was written.
    """
    if folder.exists():
        raise FileExistsError(f"out={str(folder)!r}: is there already; allowed: a new folder")
    if is_quantised(cargo.model):
        raise ValueError("the model is quantised already; allowed: export the run it is from")
    if cargo.precision is not None and to != "safetensors":
        raise ValueError(
            f"quantise={cargo.precision.kind!r}: not with --to {to}; allowed: --to safetensors"
        )
    if any(p.dtype in HALVES for p in cargo.model.parameters()):  # what computes is float32
        cargo = replace(cargo, model=copy.deepcopy(cargo.model).float())
    fresh = folder.with_name(f"{folder.name}.new")  # so that nothing half done has its name
    fresh.mkdir(parents=True)
    try:
        with os_errors(folder):
            checked = EXPORT_FORMATS[to](cargo, fresh)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    return checked


def about(cargo: Cargo, to: str, **more: Any) -> dict[str, Any]:
    """What a manifest says beside digests: the origin, the edits, the configuration, shapes, ties.

    With it the model is rebuilt by shapes: the dense one, the edits replayed, the tensors put in.
    """
    return {
        **origin_of(cargo.config, cargo.edits),
        "to": to,
        "class": type(cargo.model).__name__,
        "config": cargo.config.model_dump(mode="json", exclude_none=True),
        "shapes": {n: list(s) for n, s in shapes_of(cargo.model.state_dict()).items()},
        "ties": ties_of(cargo.model),
        **more,
    }


def ties_of(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are another's too, to the first name of each."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    pairs = [(name, first.setdefault(id(p), name)) for name, p in named]
    return {name: other for name, other in pairs if name != other}


def probe_of(cargo: Cargo, examples: int = 2) -> Forward:
    """How the task calls the model, with ids that are not all the same.

    Raises:
        ValueError: the task has no example to show.
    """
    task = tasks_of(cargo.config.plugin)[cargo.config.task]
    found = forward_of(task, cargo.model, cargo.config, examples)
    if found is None:
        raise ValueError(f"task={cargo.config.task!r}: has no example to check an export with")
    settings: Any = getattr(cargo.model, "config", None)
    known = getattr(settings, "vocab_size", 2)

    def varied(name: str, value: Any) -> Any:
        ids = isinstance(value, Tensor) and value.dtype == torch.long and "ids" in name
        return torch.arange(value.numel()).view(value.shape) % known if ids else value

    return replace(found, kwargs={name: varied(name, v) for name, v in found.kwargs.items()})


def _safetensors(cargo: Cargo, folder: Path) -> str:
    more: dict[str, Any] = {}
    precision = cargo.precision
    if precision is not None:
        cargo = replace(cargo, model=copy.deepcopy(cargo.model))
        output = output_of(tasks_of(cargo.config.plugin)[cargo.config.task], cargo.model)
        paths = quantisable(cargo.model, output)
        quantise(cargo.model, precision, paths)
        more["quantised"] = {**asdict(precision), "layers": paths}
    if precision is None:
        model = rounded(copy.deepcopy(cargo.model), dtype_of(cargo.config))
        save_model(model, str(folder / TENSORS_NAME))
        cargo = replace(cargo, model=model.float())
    else:
        save_model(cargo.model, str(folder / TENSORS_NAME))
    (folder / TENSORS_NAME).chmod(0o644)  # safetensors writes it for its owner only
    _give_back(cargo, folder)
    write_manifest(folder, about(cargo, "safetensors", **more))
    return _same_bits(cargo, folder) + ("" if precision else _type_words(cargo))


def _sparse(cargo: Cargo, folder: Path) -> str:
    weights = {**state_of(cargo.model), **frozen_of(cargo.model)}
    masks = cargo.masks
    if masks is None:
        names = [n for n, w in weights.items() if w.dim() > 1 and bool((w == 0).any())]
        masks = zeros_as_masks(cargo.model, names)
    content = to_coded(origin_of(cargo.config, cargo.edits), masked(weights, masks), masks)
    write_atomically(folder / CODED_NAME, content)
    _give_back(cargo, folder)
    write_manifest(folder, about(cargo, "sparse"))
    return _same_bits(cargo, folder)


def _same_bits(cargo: Cargo, folder: Path) -> str:
    back, here = load(folder, plugin=cargo.config.plugin).state_dict(), cargo.model.state_dict()
    odd = [name for name in here if name not in back or not torch.equal(back[name], here[name])]
    if odd or back.keys() != here.keys():
        raise ValueError(f"read again, {(odd or ['a tensor'])[0]} is not what was written")
    return f"read again by fedprune.load: {len(here)} tensors, bit for bit"


def _hf(cargo: Cargo, folder: Path) -> str:
    try:
        plain: Any = plain_model(
            folded(cargo.model), folded(dense_model(cargo.config)), cargo.edits
        )
    except Unplain as error:
        raise ValueError(f"to='hf': {error}; allowed: --to safetensors, sparse, onnx") from None
    save_transformer(plain, folder, cargo.config)
    with quiet():
        back = type(plain).from_pretrained(folder, dtype=torch.float32).eval()
        plain = rounded(plain, dtype_of(cargo.config)).float()
    forward = probe_of(cargo)
    before, after = model_outputs(plain, forward), model_outputs(back, forward)
    off, largest = float((after - before).abs().max()), float(before.abs().max())
    if not off <= 1e-5 * largest:
        raise ValueError(f"to='hf': read again it says {off:.3g} else; allowed: --to safetensors")
    _give_back(cargo, folder)
    write_manifest(folder, about(replace(cargo, model=plain, edits=()), "hf"))
    exact = float((model_outputs(cargo.model, forward) - after).abs().max())
    return (
        f"read again by from_pretrained: outputs {exact:.3g} off, they are up to {largest:.3g}"
        + _type_words(cargo)
    )


def _onnx(cargo: Cargo, folder: Path) -> str:
    found = write_onnx(cargo.model, probe_of(cargo), folder / "model.onnx")
    _give_back(cargo, folder)
    write_manifest(folder, about(cargo, "onnx"))
    shapes = ", ".join(f"{n} {s}".replace("'", "") for n, s in found.inputs.items())
    return (
        f"run by onnxruntime: outputs {found.difference:.3g} off, they are up to "
        f"{found.largest:.3g}; inputs: {shapes}"
    )


def _give_back(cargo: Cargo, folder: Path) -> None:
    """Write the tokenizer, as the user brought it, and the model card."""
    make = tasks_of(cargo.config.plugin)[cargo.config.task].tokenizer
    words = None if make is None else make(cargo.config)
    settings: Any = getattr(cargo.model, "config", None)
    plain = settings is not None and not cargo.edits and cargo.precision is None
    if plain and not (folder / "config.json").is_file():
        described = copy.deepcopy(settings)
        described.dtype = dtype_of(cargo.config)
        described.save_pretrained(folder)
    give_back(cargo.config, folder, words, settings)
    text = card(cargo.config, type(cargo.model).__name__, _sparsity(cargo), cargo.command)
    write_card(folder, text)


def _sparsity(cargo: Cargo) -> float:
    """Part of the dense model's prunable weights that is removed."""
    layout = layout_at(cargo.config, cargo.edits)
    masks = cargo.masks or zeros_as_masks(cargo.model, layout.prunable)
    return 1 - count_kept(masks) / layout.whole


def _type_words(cargo: Cargo) -> str:
    dtype = str(dtype_of(cargo.config)).removeprefix("torch.")
    return "" if dtype == "float32" else f" (weights rounded to {dtype}, as they were brought)"


EXPORT_FORMATS: dict[str, Callable[[Cargo, Path], str]] = {
    "safetensors": _safetensors,
    "sparse": _sparse,
    "hf": _hf,
    "onnx": _onnx,
}
"""What writes a form (`fedprune.export.offered`) into a folder, and says what it checked."""
