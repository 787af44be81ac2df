"""Wide layers that lie in files: some rows of their weight at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedprune.streaming.files import READ_AHEAD

_ROWS = 256
"""A product of few rows is taken by other code, which rounds otherwise."""


def read_by_rows(layer: nn.Linear, forget: Callable[[], None]) -> None:
    """Let a layer's forward pass call `forget` whenever it has read `READ_AHEAD` bytes.

    A head of 128,256 tokens is a gigabyte. Each output is the same product as before, of so many
    rows that its bits are the same here; no library promises that. Where gradients are wanted the
    weight is read at once.
    """

    def forward(x: Tensor) -> Tensor:
        w, b = layer.weight, layer.bias
        rows = max(1, READ_AHEAD // (_ROWS * w.shape[1] * w.dtype.itemsize)) * _ROWS
        if len(w) <= rows or torch.is_grad_enabled():
            return linear(x, w, b)
        out = []
        for start in range(0, len(w), rows):
            some = slice(start, start + rows)
            out.append(linear(x, w[some], None if b is None else b[some]))
            forget()
        return torch.cat(out, -1)

    own: Any = layer
    own.forward = forward
