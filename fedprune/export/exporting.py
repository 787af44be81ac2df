"""A finished model in the forms that others read, each checked before it counts as written."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from fedprune.codec.coded_file import CODED_NAME, HALVES, to_coded
from fedprune.export.brought import dtype_of, rounded, save_transformer
from fedprune.export.config_keys import Unplain
from fedprune.export.deci_folder import write_deci_folder
from fedprune.export.exported_model import (
    ExportedModel,
    about_export,
    give_all_back,
    probe_of,
    type_words,
)
from fedprune.export.folders import load, model_outputs
from fedprune.export.gguf_file import GGUF_KINDS
from fedprune.export.gguf_folder import write_gguf_folder
from fedprune.export.hf_config import plain_model
from fedprune.export.manifest import write_manifest
from fedprune.export.measure import zeros_as_masks
from fedprune.export.onnx import write_onnx
from fedprune.export.quantise import is_quantised, quantisable, quantise
from fedprune.options.refusal import refuse
from fedprune.protocol.models import dense_model
from fedprune.protocol.origin import origin_of
from fedprune.runtime.files import os_errors, write_atomically
from fedprune.structure.experts import mixtures_in
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.hub import quiet
from fedprune.tasks.rescaling import folded
from fedprune.tasks.task import output_of
from fedprune.tensors.models import frozen_of, state_of
from fedprune.tensors.named import masked

TENSORS_NAME = "model.safetensors"


def export(exported: ExportedModel, to: str, folder: Path) -> str:
    """Write a model into a fresh folder, with a manifest, and read it again.

    `to` is a name in `EXPORT_FORMATS`. What was checked comes out, in words.

    Raises:
        FileExistsError: the folder is there.
        ValueError: the form cannot hold this model (the message names one that can), or what was
            read again is not what was written.
    """
    if folder.exists():
        raise FileExistsError(f"out={str(folder)!r}: is there already; allowed: a new folder")
    if is_quantised(exported.model):
        raise ValueError("the model is quantised already; allowed: export the run it is from")
    if exported.precision is not None and to != "safetensors":
        raise ValueError(
            f"quantise={exported.precision.kind!r}: not with --to {to}; allowed: --to safetensors"
        )
    if exported.dtype is not None and to != "gguf":
        refuse("type", exported.dtype, f"not with --to {to}", "--to gguf")
    if any(p.dtype in HALVES for p in exported.model.parameters()):  # what computes is float32
        exported = replace(exported, model=copy.deepcopy(exported.model).float())
    fresh = folder.with_name(f"{folder.name}.new")  # so that nothing half done has its name
    fresh.mkdir(parents=True)
    try:
        with os_errors(folder):
            checked = EXPORT_FORMATS[to](exported, fresh)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    return checked


def _safetensors(exported: ExportedModel, folder: Path) -> str:
    more: dict[str, Any] = {}
    precision = exported.precision
    if precision is not None:
        exported = replace(exported, model=copy.deepcopy(exported.model))
        output = output_of(tasks_of(exported.config.plugin)[exported.config.task], exported.model)
        paths = quantisable(exported.model, output)
        quantise(exported.model, precision, paths, exported.sums)
        more["quantised"] = {**asdict(precision), "layers": paths}
    if precision is None:
        model = rounded(copy.deepcopy(exported.model), dtype_of(exported.config))
        save_model(model, str(folder / TENSORS_NAME))
        exported = replace(exported, model=model.float())
    else:
        save_model(exported.model, str(folder / TENSORS_NAME))
    (folder / TENSORS_NAME).chmod(0o644)  # safetensors writes it for its owner only
    give_all_back(exported, folder)
    write_manifest(folder, about_export(exported, "safetensors", **more))
    return _same_bits(exported, folder) + ("" if precision else type_words(exported))


def _sparse(exported: ExportedModel, folder: Path) -> str:
    weights = {**state_of(exported.model), **frozen_of(exported.model)}
    masks = exported.masks
    if masks is None:
        names = [n for n, w in weights.items() if w.dim() > 1 and bool((w == 0).any())]
        masks = zeros_as_masks(exported.model, names)
    content = to_coded(origin_of(exported.config, exported.edits), masked(weights, masks), masks)
    write_atomically(folder / CODED_NAME, content)
    give_all_back(exported, folder)
    write_manifest(folder, about_export(exported, "sparse"))
    return _same_bits(exported, folder)


def _same_bits(exported: ExportedModel, folder: Path) -> str:
    back, here = (
        load(folder, plugin=exported.config.plugin).state_dict(),
        exported.model.state_dict(),
    )
    odd = [name for name in here if name not in back or not torch.equal(back[name], here[name])]
    if odd or back.keys() != here.keys():
        raise ValueError(f"read again, {(odd or ['a tensor'])[0]} is not what was written")
    return f"read again by fedprune.load: {len(here)} tensors, bit for bit"


def _hf(exported: ExportedModel, folder: Path) -> str:
    try:
        plain: Any = plain_model(
            folded(exported.model), folded(dense_model(exported.config)), exported.edits
        )
    except Unplain as error:
        settings: Any = getattr(exported.model, "config", None)
        others = ", gguf, vllm" * (getattr(settings, "model_type", "") in GGUF_KINDS)
        allowed = f"--to safetensors, sparse, onnx{others}"
        raise ValueError(f"to='hf': {error}; allowed: {allowed}") from None
    save_transformer(plain, folder, exported.config)
    with quiet():
        back = type(plain).from_pretrained(folder, dtype=torch.float32).eval()
        plain = rounded(plain, dtype_of(exported.config)).float()
        for model in (plain, back):
            if mixtures_in(model):  # whose fast products take widths of 16 bytes alone
                model.set_experts_implementation("eager")
    forward = probe_of(exported)
    before, after = model_outputs(plain, forward), model_outputs(back, forward)
    off, largest = float((after - before).abs().max()), float(before.abs().max())
    if not off <= 1e-5 * largest:
        raise ValueError(f"to='hf': read again it says {off:.3g} else; allowed: --to safetensors")
    give_all_back(exported, folder)
    write_manifest(folder, about_export(replace(exported, model=plain, edits=()), "hf"))
    exact = float((model_outputs(exported.model, forward) - after).abs().max())
    return (
        f"read again by from_pretrained: outputs differ by up to {exact:.3g}, the largest is "
        f"{largest:.3g}" + type_words(exported)
    )


def _onnx(exported: ExportedModel, folder: Path) -> str:
    found = write_onnx(exported.model, probe_of(exported), folder / "model.onnx")
    give_all_back(exported, folder)
    write_manifest(folder, about_export(exported, "onnx"))
    shapes = ", ".join(f"{n} {s}".replace("'", "") for n, s in found.inputs.items())
    return (
        f"run by onnxruntime: outputs differ by up to {found.difference:.3g}, the largest is "
        f"{found.largest:.3g}; inputs: {shapes}"
    )


EXPORT_FORMATS: dict[str, Callable[[ExportedModel, Path], str]] = {
    "safetensors": _safetensors,
    "sparse": _sparse,
    "hf": _hf,
    "gguf": write_gguf_folder,
    "vllm": write_deci_folder,
    "onnx": _onnx,
}
"""What writes a form (`fedprune.export.offered`) into a folder, and says what it checked."""
