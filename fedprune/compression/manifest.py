"""``fedprune.json``: what a model's folder is, how to rebuild it, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprune.checkpoint import write_atomically

MANIFEST_NAME = "fedprune.json"


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a finished folder, with the SHA-256 of all files that are in it now."""
    files = {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    text = json.dumps({**about, "files": files}, indent=1)
    write_atomically(folder / MANIFEST_NAME, text.encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are as they were written.

    Files that it does not name are not looked at; whoever moves a folder may add a README.

    Raises:
        FileNotFoundError: there is no manifest, or a file that it names is gone.
        ValueError: it is no manifest of ours, or a file was changed; the file is named.
    """
    path = folder / MANIFEST_NAME
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: damaged, it is not JSON ({error})") from None
    if not isinstance(about, dict) or "task" not in about or "plugin" not in about:
        raise ValueError(f"{path}: not a fedprune manifest, it names no task")
    for name, digest in about.get("files", {}).items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: gone, though {path} names it")
        if sha256_of(file) != digest:
            raise ValueError(f"{file}: damaged or foreign, its SHA-256 is not the one in {path}")
    return about


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
