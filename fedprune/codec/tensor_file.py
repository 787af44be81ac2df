"""Tensors as the content of a safetensors file, a tensor at a time: no second copy is made of them.

The format: 8 bytes of length, a JSON head with types, shapes and places, then the values. In the
order of the library, so that the bytes are those of ``safetensors.torch.save``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedprune.tensors.lazy import bare_of
from fedprune.tensors.named import as_bytes

_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls them, in the library's order."""

_PLACE = {dtype: i for i, dtype in enumerate(_TYPES)}
_ALIGNED = 8


def tensor_file(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The pieces of the file. What is yielded may be a tensor's own memory.

    Raises:
        KeyError: a type that is none of the format's.
    """
    bare = bare_of(tensors)
    names = sorted(bare, key=lambda n: (_PLACE[bare[n].dtype], n))
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name in names:
        t = bare[name]
        end = start + t.numel() * t.element_size()
        places = {"dtype": _TYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
        head[name], start = places, end
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield as_bytes(tensors[name].contiguous())
