"""Tensors in safetensors files, of a model in one or in several: read where they lie.

The format: 8 bytes with the length of a JSON head, the head, the tensors' bytes
(https://huggingface.co/docs/safetensors). Of several files `INDEX` says which holds which tensor.
Files are mapped: what is read is the kernel's page of the file, the same for all processes, and
`MappedFolder.forget` lets go of pages that are not to be read again soon.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedprune.runtime.json_text import LONGEST_TEXT, MOST_TENSORS, read_object

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
"""Types of torch by their names in a head."""


@dataclass(frozen=True)
class FilePlace:
    """Where a tensor lies."""

    path: Path
    dtype: torch.dtype
    shape: torch.Size
    start: int


def places_in(path: Path) -> dict[str, FilePlace]:
    """The tensors of a safetensors file, by name, as its head says; they are not read.

    Raises:
        ValueError: the head is damaged, or too long, or says more than the file is long.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LONGEST_TEXT:
                raise ValueError(f"a header of {length} bytes; allowed: {LONGEST_TEXT}")
            head = read_object(file.read(length))
        head.pop("__metadata__", None)
        if len(head) > MOST_TENSORS:
            raise ValueError("more than there is room for")
        return {name: _place(path, said, 8 + length, size) for name, said in head.items()}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: damaged, its header cannot be read ({error})") from None


def _place(path: Path, said: Mapping[str, object], start: int, size: int) -> FilePlace:
    shape, offsets, dtype = said["shape"], said["data_offsets"], TYPES.get(str(said["dtype"]))
    if not isinstance(shape, list) or not isinstance(offsets, list) or dtype is None:
        raise ValueError(f"a tensor of type {said['dtype']!r}")
    numbers = [*shape, *offsets]
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError("a size that is no whole number from 0")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize or start + end > size:
        raise ValueError("more than there is room for")
    return FilePlace(path, dtype, torch.Size(shape), start + begin)


def tensors_in(folder: Path) -> dict[str, FilePlace]:
    """The tensors of a model's folder, by name: those of its one file, or of all in its index.

    Empty where it has neither.

    Raises:
        ValueError: a file is damaged or lacks a tensor that the index says it has, or the index
            names a file of another folder.
        FileNotFoundError: a file that the index names is gone.
    """
    if not (folder / INDEX).is_file():
        one = folder / ONE_FILE
        return places_in(one) if one.is_file() else {}
    try:
        files = read_object((folder / INDEX).read_bytes(), LONGEST_TEXT)["weight_map"]
        names = {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / INDEX}: damaged, it cannot be read ({error})") from None
    found: dict[str, dict[str, FilePlace]] = {}
    for file in dict.fromkeys(names.values()):
        if Path(file).name != file:
            raise ValueError(f"{folder / INDEX}: foreign, it names a file of another folder")
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: gone, though {folder / INDEX} names it")
        found[file] = places_in(folder / file)
    gone = next((n for n, file in names.items() if n not in found[file]), None)
    if gone is not None:
        raise ValueError(f"{folder / names[gone]}: has no {gone}, though {folder / INDEX} says so")
    return {name: found[file][name] for name, file in names.items()}


READ_AHEAD = 2**24
"""Bytes of files that stay resident for having been read, before all are let go of."""


@dataclass(eq=False)
class MappedFolder:
    """The tensors of a model's folder, mapped.

    `digest` is of them, once somebody has gone through them all; "" before.
    """

    places: Mapping[str, FilePlace]
    digest: str = ""
    _read: int = 0
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """A tensor over its file's pages: to read, and not to write to.

        Raises:
            KeyError: there is none of this name.
        """
        place = self.places[name]
        if not place.shape.numel():
            return torch.empty(place.shape, dtype=place.dtype)
        if place.path not in self._maps:
            with place.path.open("rb") as file:
                # Private: what writes to a tensor all the same changes no file.
                self._maps[place.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        size = place.shape.numel() * place.dtype.itemsize
        self._read += size
        if self._read > READ_AHEAD:
            self.forget()
            self._read = size
        flat = torch.frombuffer(
            self._maps[place.path], dtype=place.dtype, count=place.shape.numel(), offset=place.start
        )
        return flat.view(place.shape)

    def forget(self) -> None:
        """Let go of the pages that were read; they are read again where that is needed."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)


def index_of(files: Mapping[str, str], size: int) -> bytes:
    """The content of `INDEX` for tensors by name and file, of so many bytes in all."""
    said = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
    return f"{json.dumps(said, indent=2)}\n".encode()
