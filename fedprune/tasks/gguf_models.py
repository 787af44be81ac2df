"""Models in a GGUF file, as folders that can be loaded.

GGUF is the file of llama.cpp, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. It is read
once, by `gguf` and `transformers`; the folder that comes of it, with float32 weights and the
tokenizer, is kept among the user's cached files under the digest of the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections import Counter
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from fedprune.options.refusal import counted
from fedprune.runtime.files import os_errors, panics_as_errors
from fedprune.tasks.claims import LONGEST_TOKENIZER, MOST_LAYERS, HeldByFiles, TooLarge, filled_by
from fedprune.tasks.hub import quiet

SOURCE = "gguf_source.json"
"""Says in a folder that came of a GGUF file which file it was, and the types of its tensors."""


FORMAT = 2
"""Of the folders that are kept; another one is made afresh."""


def is_gguf(model: str) -> bool:
    """Whether a name is that of a GGUF file that is there."""
    return model.endswith(".gguf") and Path(model).is_file()


def note_of(folder: str) -> tuple[str, ...]:
    """What has to be said beside every number of a model that came of a quantised file."""
    path = Path(folder) / SOURCE
    if not path.is_file():
        return ()
    said = json.loads(path.read_text())
    kinds = {kind: n for kind, n in said["types"].items() if kind not in ("F32", "F16", "BF16")}
    if not kinds:
        return ()
    most = max(kinds, key=lambda kind: (kinds[kind], kind))
    text = (
        f"the weights are those of {said['file']}, where {counted(kinds[most], 'tensor')} of "
        f"{sum(said['types'].values())} are quantised as {most}: dense figures are of that file, "
        "not of the model it was made from"
    )
    return (text,)


@functools.lru_cache(maxsize=8)
def unpacked_gguf(file: Path) -> Path:
    """The folder of a GGUF file, made where there is none yet."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    folder = _cache() / f"{digest}-{FORMAT}"
    if not (folder / SOURCE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made, os_errors(folder.parent):
            _convert(file, Path(made) / "model")
            try:
                (Path(made) / "model").rename(folder)
            except OSError:  # another process was first: its folder is the same
                if not (folder / SOURCE).is_file():
                    raise
    return folder


def _cache() -> Path:
    """Where folders are kept: ``$XDG_CACHE_HOME/fedprune``, or the system's place for files of now.

    That is also taken where a home folder cannot be written.
    """
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedprune"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        wanted = Path(tempfile.gettempdir()) / f"fedprune-{os.getuid()}"
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        if wanted.stat().st_uid != os.getuid():
            raise PermissionError(
                f"{wanted}: belongs to another user; set XDG_CACHE_HOME"
            ) from None
    return wanted / "models"


def _convert(file: Path, folder: Path) -> None:
    """Write what a GGUF file holds as transformers writes it, float32."""
    types, held = _types_of(file)
    try:
        # Bars of its progress have no switch.
        hushed = redirect_stderr(StringIO())
        with panics_as_errors(), filled_by(held, str(file)), quiet(), hushed:
            model, tokenizer = _read(file)
    except TooLarge:
        raise
    except Exception as error:  # a file that holds anything makes its readers raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"model={str(file)!r}: cannot be read: {reason}; allowed: a GGUF file of a "
            "language model whose architecture transformers reads"
        ) from None
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    said = {"file": file.name, "types": dict(sorted(types.items()))}
    (folder / SOURCE).write_text(f"{json.dumps(said, indent=2)}\n")


def _types_of(file: Path) -> tuple[Counter[str], HeldByFiles]:
    """How many tensors of each type a file has, and how much they hold."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise FileNotFoundError(
            f"model={str(file)!r}: gguf is not installed; allowed: pip install gguf"
        ) from None
    try:
        reader = GGUFReader(file)
        tensors = reader.tensors
        layers = [
            f for name, f in reader.fields.items() if name.endswith((".block_count", "layers"))
        ]
        most = max((int(f.contents()) for f in layers), default=0)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"model={str(file)!r}: cannot be read: {reason}; allowed: a whole GGUF file"
        ) from None
    if most > MOST_LAYERS:
        raise ValueError(f"model={str(file)!r}: {most} layers; allowed: up to {MOST_LAYERS}")
    words = file.stat().st_size - sum(int(t.n_bytes) for t in tensors)
    if words > LONGEST_TOKENIZER:
        raise ValueError(
            f"model={str(file)!r}: {words} bytes beside its tensors; allowed: {LONGEST_TOKENIZER}"
        )
    values = sum(int(t.n_elements) for t in tensors)
    return Counter(t.tensor_type.name for t in tensors), HeldByFiles(values, len(tensors))


def _read(file: Path) -> tuple[Any, Any]:
    """The model, without the mark that it was quantised, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    # transformers refuses to save what it calls quantised; these weights are plain float32.
    plain = model.config.__class__.from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    fresh: Any = model.__class__(plain)
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    return fresh, _embedded(tokenizer, fresh.get_input_embeddings().num_embeddings)


def _embedded(tokenizer: Any, count: int) -> Any:
    """A tokenizer without tokens that a model with so many embeddings has none of.

    Its class in transformers may add some to those of the file: GPT-2's its own mark of the end,
    also to a vocabulary that has another one.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    beyond = {token for token, i in tokenizer.get_added_vocab().items() if i >= count}
    if not beyond:
        return tokenizer
    about = json.loads(tokenizer.backend_tokenizer.to_str())
    about["added_tokens"] = [t for t in about["added_tokens"] if t["content"] not in beyond]
    marks = {mark: t for mark, t in tokenizer.special_tokens_map.items() if t not in beyond}
    core = Tokenizer.from_str(json.dumps(about))
    said = {"chat_template": tokenizer.chat_template, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=core, **said, **marks)
