"""A model from whatever folder fedprune wrote it to: a run, its model, an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.config import configure
from fedprune.export import saved
from fedprune.export.deci_reading import deci_content, deci_into_model
from fedprune.export.gguf_file import GGUF_NAME
from fedprune.export.gguf_reading import into_model, read_gguf
from fedprune.export.manifest import MANIFEST_NAME, read_manifest
from fedprune.export.measure import Forward
from fedprune.export.offered import ROUNDING
from fedprune.export.quantise import Precision, quantise
from fedprune.options.plugins import with_code_of
from fedprune.protocol.models import dense_model
from fedprune.structure.edits import edits_of_list
from fedprune.structure.surgery import reshaped
from fedprune.tasks.claims import filled_by, held_by, held_in
from fedprune.tasks.fetching import from_pretrained

_About = Mapping[str, Any]


def load(folder: str | Path, model: nn.Module | None = None, plugin: str = "") -> nn.Module:
    """The model of a run's folder, of its model's folder or of an export, in eval mode on the CPU.

    A run's model is rebuilt from its coded file, the others as their manifest says; a model that
    was cut comes back in its own shape, a quantised one quantised. No file is unpickled, and no
    code runs but the caller's.

    Args:
        folder: ``runs/<name>``, ``runs/<name>/model``, or what ``fedprune export`` wrote.
        model: the dense model, filled and returned instead of one built by the task that made the
            folder; needed where that task is not in `fedprune.tasks.catalog.TASKS` any more.
        plugin: the Python file with that task, where a run with ``--plugin`` made the folder: what
            the folder itself says of it is shown and not run.

    Raises:
        FileNotFoundError: none of these, or a file is gone.
        ValueError: a file is damaged, foreign, does not fit the model or names a plug-in that was
            not given; it is named. Nothing else is raised, whatever the files hold.
    """
    try:
        return _loaded(Path(folder), model, plugin)
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # files that hold anything make torch and others raise anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: cannot be loaded: {type(error).__name__}: {reason}") from None


def _loaded(folder: Path, model: nn.Module | None, plugin: str) -> nn.Module:
    if not (folder / MANIFEST_NAME).is_file():
        return saved.load_saved(folder, model, plugin)
    about = read_manifest(folder)
    if "to" not in about:
        return saved.load_saved(folder, model, plugin)
    if about["to"] not in tuple(_READERS):
        raise ValueError(f"{folder / MANIFEST_NAME}: of a form that is not known, {about['to']!r}")
    return _READERS[about["to"]](folder, about, model, plugin).eval()


def _safetensors(folder: Path, about: _About, model: nn.Module | None, plugin: str) -> nn.Module:
    with filled_by(held_by(folder), str(folder / MANIFEST_NAME)):
        model = model or dense_model(configure(_keys(folder, about, plugin)))
    with filled_by(held_by(folder), str(folder / MANIFEST_NAME)):
        model = reshaped(model, edits_of_list(about.get("edits", [])))
    how = about.get("quantised")
    if how:
        by = how.get("by", ROUNDING)
        precision = Precision(how["kind"], how["group"], how["symmetric"], by)
        quantise(model.eval(), precision, how["layers"])
    saved.load_tensors(model, folder)
    return model


def _keys(folder: Path, about: _About, plugin: str) -> dict[str, Any]:
    """The keys of the configuration of an export's run; its model, to be filled, is in memory."""
    names = {key: about[key] for key in ("class_names",) if key in about}
    keys = {**about["config"], **names, "stream": "off"}
    return dict(with_code_of(plugin, keys, folder / MANIFEST_NAME))


def _hf(folder: Path, about: _About, _: nn.Module | None, __: str) -> nn.Module:
    import transformers

    # transformers is a lazy package: its classes are to be had by name only.
    kind: Any = getattr(transformers, str(about.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"{folder / MANIFEST_NAME}: of no class of transformers that is a model")
    model: nn.Module = from_pretrained(kind, str(folder), about["task"], dtype=torch.float32)
    return model


def _gguf(folder: Path, about: _About, model: nn.Module | None, plugin: str) -> nn.Module:
    content = read_gguf(folder / GGUF_NAME)
    edits = edits_of_list(about.get("edits", []))
    with filled_by(held_in(content.tensors), str(folder / GGUF_NAME)):
        model = model or dense_model(configure(_keys(folder, about, plugin)))
        model = reshaped(model, edits)
    into_model(content, model, edits)
    return model


def _vllm(folder: Path, about: _About, model: nn.Module | None, plugin: str) -> nn.Module:
    edits = edits_of_list(about.get("edits", []))
    with filled_by(held_by(folder), str(folder / MANIFEST_NAME)):
        model = model or dense_model(configure(_keys(folder, about, plugin)))
        model = reshaped(model, edits)
    deci_into_model(deci_content(folder)[1], model, edits)
    return model


def _onnx(folder: Path, _: _About, __: nn.Module | None, ___: str) -> nn.Module:
    raise ValueError(
        f"{folder}: an ONNX graph, for onnxruntime, which holds no model of ours; allowed: the run "
        "that it is from, or an export of it that is no graph"
    )


_READERS: dict[str, Callable[[Path, _About, nn.Module | None, str], nn.Module]] = {
    "safetensors": _safetensors,
    "sparse": lambda folder, _, model, plugin: saved.load_saved(folder, model, plugin),
    "hf": _hf,
    "gguf": _gguf,
    "vllm": _vllm,
    "onnx": _onnx,
}


def model_outputs(model: nn.Module, forward: Forward) -> Tensor:
    """What a model says: its output, or the logits in it."""
    output = forward.through(model)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits
