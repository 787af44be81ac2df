"""A folder with a GGUF file, which counts as written when its own reader has read it again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedprune.export.brought import dtype_of
from fedprune.export.decoder import Unheld, decoder_of
from fedprune.export.exported_model import (
    ExportedModel,
    about_export,
    give_card,
    probe_of,
    tokenizer_of,
)
from fedprune.export.folders import model_outputs
from fedprune.export.gguf_file import GGUF_KINDS, GGUF_NAME, GgufPlan, gguf_plan, write_gguf
from fedprune.export.gguf_reading import gguf_logits, into_model, read_gguf
from fedprune.export.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from fedprune.export.manifest import write_manifest
from fedprune.options.refusal import counted, refuse
from fedprune.tensors.models import state_of

GRAPH_TOLERANCE = 1e-4
"""How far logits of a graph that was written out may be off, as a part of the largest above 1."""

_BROUGHT = {torch.float16: "f16", torch.bfloat16: "bf16"}


def write_gguf_folder(exported: ExportedModel, folder: Path) -> str:
    """Write the file, the manifest and the card.

    What was checked comes out, in words.

    Raises:
        ImportError: `gguf` is not installed.
        ValueError: llama.cpp cannot hold the model, or what was read again is not what was written.
    """
    try:
        import gguf  # noqa: F401 (asked for before anything is written)
    except ImportError:
        raise ImportError(
            "to='gguf': gguf is not installed; allowed: pip install 'fedprune[llm]'"
        ) from None
    kind = _kind(exported)
    try:
        plan = gguf_plan(decoder_of(exported.model, exported.edits, GGUF_KINDS))
        vocabulary = _vocabulary(exported, plan)
    except Unheld as error:
        raise ValueError(f"to='gguf': {error}; allowed: --to safetensors, sparse, onnx") from None
    path = folder / GGUF_NAME
    kinds = write_gguf(path, plan, kind, vocabulary, f"{exported.config.task} by fedprune")
    checked = _read_again(exported, path)
    give_card(exported, folder)
    write_manifest(folder, about_export(exported, "gguf", type=kind))
    types = ", ".join(f"{n} {name}" for name, n in sorted(kinds.items()))
    stands = f", {counted(plan.stood_in, 'unit')} of zeros in place of none" * bool(plan.stood_in)
    return f"architecture {plan.architecture}{stands}; {types}\n{checked}"


def _kind(exported: ExportedModel) -> str:
    """The type of the matrices."""
    brought = _BROUGHT.get(dtype_of(exported.config), "f32")
    kind = exported.dtype or brought
    large = [n for n, t in state_of(exported.model).items() if float(t.abs().max()) > 65504]
    if kind in ("f16", "q8_0") and large:  # the scales of q8_0 are float16 too, of a 127th
        if exported.dtype is None:
            return "f32"
        refuse("type", kind, f"{large[0]} has numbers beyond 65504", "f32, bf16")
    return kind


def _vocabulary(exported: ExportedModel, plan: GgufPlan) -> GgufVocabulary:
    tokenizer = tokenizer_of(exported)
    if tokenizer is None:
        raise Unheld(f"task {exported.config.task} has no tokenizer")
    return gguf_vocabulary(tokenizer, plan.decoder.settings.vocab_size)


def _read_again(exported: ExportedModel, path: Path) -> str:
    content = read_gguf(path)
    back = copy.deepcopy(exported.model)
    kinds = into_model(content, back, exported.edits)
    for name, kind in kinds.items():
        here, there = (m.get_parameter(name).detach() for m in (exported.model, back))
        if not bool(((here - there).abs() <= _step(here, kind)).all()):
            raise ValueError(f"to='gguf': read again, {name} is not what was written")
    forward = probe_of(exported)
    ids: Tensor = forward.kwargs["input_ids"]
    with torch.no_grad():
        graph = torch.stack([gguf_logits(content, row) for row in ids])
    off, largest = outputs_apart(graph, model_outputs(back, forward), "gguf")
    rounded = (graph - model_outputs(exported.model, forward)).abs()
    # The probe is no text: what a rounding does to one of its logits may be far more than to most.
    return (
        f"read again: {counted(len(kinds), 'tensor')}; llama.cpp's graph, written out, is "
        f"{off:.3g} off with the file's weights, and {float(rounded.mean()):.3g} off the model on "
        f"average, {float(rounded.max()):.3g} at most; logits are up to {largest:.3g}"
    )


def outputs_apart(graph: Tensor, expected: Tensor, to: str) -> tuple[float, float]:
    """The largest difference of two logits, and the largest logit.

    Raises:
        ValueError: they differ by more than `GRAPH_TOLERANCE`.
    """
    off, largest = float((graph - expected).abs().max()), float(expected.abs().max())
    if not off <= GRAPH_TOLERANCE * max(1.0, largest):
        raise ValueError(f"to={to!r}: read again it says {off:.3g} else; allowed: --to safetensors")
    return off, largest


def _step(values: Tensor, kind: str) -> Any:
    """How far a number may be off in its type: half a step."""
    size = values.abs()
    if kind == "F32":
        return 0.0
    if kind == "Q8_0":  # half of a 127th of the largest of 32, and 127 roundings of it to float16
        largest = size.reshape(-1, 32).amax(-1, keepdim=True)
        return (largest / 254 * 1.13 + 127 * 2**-25).expand(-1, 32).reshape(values.shape)
    return size * (2**-8 if kind == "BF16" else 2**-11) + 2**-25
