"""What `transformers` loads from a folder or by a hub id, within bounds and without its code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from fedprune.runtime.files import panics_as_errors
from fedprune.streaming.files import tensors_in
from fedprune.tasks.claims import check_config, filled_by, held_by
from fedprune.tasks.hub import offline, quiet, reachable
from fedprune.tasks.options import Data, is_trained
from fedprune.tasks.pretrained import place_of

_OF_A_TOKENIZER = re.compile(r"tokenizer(?!_config)|vocab|dict|codes|\.(model|spm|tiktoken|gguf)$")
"""What is in the name of a file that holds a tokenizer's words, by transformers' tokenizers."""


def from_pretrained(auto: Any, name: str, task: str, **options: Any) -> Any:
    """``auto.from_pretrained`` of a folder, or of a hub id that is cached or can be reached.

    Code that its config names (``auto_map``, kernels of the hub) is refused, and nobody is asked
    whether to run it. Of a pickle only tensors are read.

    Raises:
        FileNotFoundError: there is no such folder, and no such hub id is to be had.
        ValueError: one line that says why a folder cannot be loaded, whatever lies in it.
    """
    name = place_of(name)
    folder = Path(name).is_dir()
    here = {} if folder or reachable() else {"local_files_only": True}
    options["trust_remote_code"] = False  # left out, it is a question to who sits at the terminal
    with quiet(), offline() if here else nullcontext():
        try:
            with bounded_by_files(Path(name)) if folder else nullcontext():
                _check_kernels(name, here)
                if folder and auto.__name__ == "AutoTokenizer":
                    _check_tokenizer(Path(name))
                with panics_as_errors():
                    return auto.from_pretrained(name, **options, **here)
        except UnpicklingError:  # torch's words for it end in how to run what is in there
            reason = "its weights are a pickle of more than tensors, which could run code"
        except Exception as error:  # files that hold anything make transformers raise anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            if folder and not (Path(name) / "config.json").is_file():
                reason = "there is no config.json in it"  # which no word of transformers' may say
    allowed = "a folder that transformers saved a model and its tokenizer in"
    if folder:
        raise ValueError(
            f"model={name!r}: {auto.__name__} cannot load it: {reason}; allowed: {allowed}"
        )
    raise FileNotFoundError(
        f"model={name!r}: neither a family of task {task} nor a folder, and the hub is not "
        f"reachable or has no such model; allowed: a name of --list, {allowed}, a hub id"
    )


def _check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer: transformers may make an empty one, or say much else."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if any(_OF_A_TOKENIZER.search(path.name) for path in folder.iterdir()):
        return
    about = folder / "tokenizer_config.json"
    said = json.loads(about.read_text("utf-8")) if about.is_file() else {}
    known = tokenizer_class_from_name(str(said.get("tokenizer_class")))
    if known is None or known.vocab_files_names:  # those of bytes, as ByT5's, have no files
        raise ValueError("there is no tokenizer in it, such as tokenizer.json")


def _check_kernels(name: str, here: dict[str, Any]) -> None:
    """Refuse a config with kernels by a hub id: transformers would fetch that code and run it."""
    from transformers import PreTrainedConfig

    try:
        said, _ = PreTrainedConfig.get_config_dict(name, **here)
    except Exception:  # whoever loads it says why
        return
    for key, value in _entries(said):
        if key.endswith("_implementation") and "/" in str(value):
            raise ValueError(
                f"{key} of its config is {value!r}, code of the hub, and a file does not choose "
                "what code runs"
            )


def _entries(said: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of a configuration and of those within it."""
    for key, value in said.items() if isinstance(said, dict) else ():
        yield str(key), value
        yield from _entries(value)


@contextmanager
def bounded_by_files(folder: Path) -> Iterator[None]:
    """Within the block nothing is built that the files of a folder could not fill.

    Raises:
        ValueError: its config or a header asks for what no model has, or a model begins to be
            built that is larger than they are.
    """
    check_config(folder)
    with filled_by(held_by(folder), f"{folder}"):
        yield


def type_of(config: Data) -> torch.dtype:
    """The type of a loaded model's weights: that of its files where nobody trains, else float32.

    Averages and small steps would be lost in fewer bits, and what `--reduce` puts in a model's
    place is float32.
    """
    if is_trained(config) or getattr(config, "reduce", None):
        return torch.float32
    found = saved_type(config.model, config.task)
    return found if found.itemsize < 4 else torch.float32


def saved_type(model: str, task: str) -> torch.dtype:
    """The type that the weights of a folder or hub id are saved in, as its config says it.

    Where that says nothing, the type of the first of them in safetensors; else float32.
    """
    from transformers import AutoConfig

    said = from_pretrained(AutoConfig, model, task).dtype
    known = said if isinstance(said, torch.dtype) else getattr(torch, str(said), None)
    if isinstance(known, torch.dtype) and known.is_floating_point:
        return known
    found = [place.dtype for place in tensors_in(Path(place_of(model))).values()]
    return next((dtype for dtype in found if dtype.is_floating_point), torch.float32)
