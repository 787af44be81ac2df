"""``fedprune.json``: what a model's folder is, how to rebuild it, and the digest of every file.

It has a digest of itself too: its edits, shapes and configuration are as they were written, or it
is refused. Digests find damage. They do not say who wrote a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprune.runtime.files import write_atomically
from fedprune.runtime.json_text import read_json
from fedprune.runtime.sums import is_inside, sha256_of

MANIFEST_NAME = "fedprune.json"
CARD_NAME = "README.md"

_DIGEST = "sha256"
"""The key of the manifest's own digest."""

_WEIGHTS = (".safetensors", ".fedprune", ".gguf", ".onnx")
"""How the names of files that hold a model end; a manifest names each that lies beside it."""


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a finished folder, with the SHA-256 of all files that are in it now.

    But of its model card, which is for people, and theirs to edit.
    """
    files = {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST_NAME, CARD_NAME)
    }
    said = {**about, "files": files}
    text = json.dumps({**said, _DIGEST: _digest_of(said)}, indent=1)
    write_atomically(folder / MANIFEST_NAME, text.encode())


def _digest_of(said: Mapping[str, Any]) -> str:
    """The SHA-256 of what a manifest says, whatever its white space, hex."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are as they were written.

    Files that it does not name are not looked at, so that whoever moves a folder may add a README;
    one beside it that would hold a model is refused.

    Raises:
        FileNotFoundError: there is no manifest, or a file that it names is gone.
        ValueError: it is no manifest of ours, or it or a file was changed; the file is named.
    """
    path = folder / MANIFEST_NAME
    about = _read(path)
    for name, digest in about["files"].items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: gone, though {path} names it")
        if sha256_of(file) != digest:
            raise ValueError(f"{file}: damaged or foreign, its SHA-256 is not the one in {path}")
    for file in sorted(folder.iterdir()):
        if file.suffix in _WEIGHTS and file.name not in about["files"]:
            raise ValueError(f"{file}: foreign, {path} does not name it")
    return about


def _read(path: Path) -> dict[str, Any]:
    try:
        about = read_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: damaged, it is not JSON ({error})") from None
    if not isinstance(about, dict) or "task" not in about or "plugin" not in about:
        raise ValueError(f"{path}: not a fedprune manifest, it names no task")
    if about.pop(_DIGEST, None) != _digest_of(about):
        raise ValueError(f"{path}: damaged or changed, its SHA-256 is not that of what it says")
    if not isinstance(about.get("files"), dict):
        raise ValueError(f"{path}: damaged, it names no files")
    if not all(is_inside(name) for name in about["files"]):
        raise ValueError(f"{path}: foreign, it names a file of another folder")
    return about
