"""Fewer bits for a linear layer's weights, after training, on the CPU.

Two ways. *Weight-only*: codes of 8 or 4 bits, a scale for every group of inputs of an output, and
the weights restored while a pass needs them; smaller, not faster. *Dynamic*: weights and, at every
pass anew, inputs are 8-bit integers, their products are summed as integers (Jacob et al. 2018,
arXiv 1712.05877, sect. 2; here without offsets); smaller and faster. A weight of 0.0 is 0.0 again
in all of them. PyTorch's own ``torch.ao.quantization`` is deprecated and knows no Conv1D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.export.calibrated import awq, gptq
from fedprune.export.offered import ROUNDING
from fedprune.redundancy.calibration import LayerSums
from fedprune.structure.layer_kinds import TABLES, is_plain_layer
from fedprune.structure.layers import bypassed
from fedprune.structure.matrices import matrix_of
from fedprune.tensors.codes import Codes, grouped_codes, restored

_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Precision:
    """How weights are quantised.

    Attributes:
        kind: a name in `fedprune.export.offered.PRECISIONS`.
        group: inputs that share a scale; of no meaning for "int8-dynamic".
        symmetric: zero in the middle of the codes; else a zero point for every group, which suits
            groups whose weights lie on one side.
        by: what codes are chosen by, a name in `fedprune.export.offered.QUANTISED_BY`.
    """

    kind: str
    group: int = 64
    symmetric: bool = True
    by: str = ROUNDING


class GroupedLinear(nn.Module):
    """A linear layer whose weights are codes; `weight` holds them, `dense` restores them."""

    def __init__(self, layer: nn.Module, precision: Precision, sums: LayerSums | None) -> None:
        super().__init__()
        matrix, bits = matrix_of(layer), _BITS[precision.kind]
        self.bits, self.in_features, self.out_features = bits, matrix.shape[1], matrix.shape[0]
        size = min(precision.group, matrix.shape[1] + matrix.shape[1] % 2)
        codes, factors = _codes(matrix, precision, size, sums)
        self.register_buffer("weight", codes.packed)
        self.register_buffer("scale", codes.scale)
        # A zero point that every group has alike is the middle; it needs no memory.
        self.register_buffer("zero", None if precision.symmetric else codes.zero)
        self.register_buffer("inputs", factors)
        self.bias = layer.bias

    def dense(self) -> Tensor:
        """The weights (out, in) that it computes with, float32."""
        held: Any = self
        zero = torch.tensor([[2 ** (self.bits - 1)]]) if held.zero is None else held.zero
        codes = Codes(held.weight, held.scale, zero)
        weight = restored(codes, self.bits, self.in_features)
        return weight if held.inputs is None else weight / held.inputs.float()

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        weight = self.dense().to(inputs.dtype)
        return nn.functional.linear(inputs, weight, self.bias)  # type: ignore[arg-type]


def _codes(
    matrix: Tensor, precision: Precision, group: int, sums: LayerSums | None
) -> tuple[Codes, Tensor | None]:
    """A layer's codes, and the factors of its inputs where the precision has such."""
    bits, symmetric = _BITS[precision.kind], precision.symmetric
    if precision.by == "gptq" and sums is not None:
        return gptq(matrix, sums, bits, group, symmetric=symmetric), None
    if precision.by == "awq" and sums is not None:
        return awq(matrix, sums, bits, group, symmetric=symmetric)
    ones = torch.ones(matrix.shape[1], dtype=torch.bfloat16) if precision.by == "awq" else None
    return grouped_codes(matrix, bits, group, symmetric=symmetric), ones


class IntegerLinear(nn.Module):
    """A linear layer that multiplies 8-bit integers; its output is float32 again."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        matrix = matrix_of(layer).float()
        self.in_features, self.out_features = matrix.shape[1], matrix.shape[0]
        largest = matrix.abs().amax(1)
        scale = torch.where(largest == 0, 1.0, largest / 127)
        self.register_buffer("weight", _eight_bits(matrix, scale.unsqueeze(1)))
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def dense(self) -> Tensor:
        """The weights (out, in) that it computes with, float32."""
        held: Any = self
        weight: Tensor = held.weight.float() * held.scale.unsqueeze(1)
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out); every row of the inputs has a scale of its own."""
        held: Any = self
        rows = inputs.reshape(-1, self.in_features).float()
        largest = rows.abs().amax(1, keepdim=True)
        step = torch.where(largest == 0, 1.0, largest / 127)
        sums = torch._int_mm(_eight_bits(rows, step), held.weight.t())
        out = sums.float().mul_(step).mul_(held.scale)
        if held.bias is not None:
            out += held.bias
        return out.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)


def _eight_bits(values: Tensor, scale: Tensor) -> Tensor:
    return (values / scale).round_().clamp_(-127, 127).to(torch.int8)


def quantisable(model: nn.Module, spared: Sequence[str] = ()) -> list[str]:
    """Paths of the linear layers that can be quantised, in model order.

    Not those in `spared`, and not those that share their weights with embeddings: there the rows
    are looked up as well.
    """
    modules = dict(model.named_modules())
    tables = {id(m.weight) for m in modules.values() if isinstance(m, TABLES)}
    called_for = bypassed(model)
    return [
        path
        for path, m in modules.items()
        if is_plain_layer(m, convolutions=False)
        and id(m) not in called_for
        and path not in spared
        and id(m.weight) not in tables
    ]


def is_quantised(model: nn.Module) -> bool:
    """Whether any of its layers is."""
    return any(isinstance(m, GroupedLinear | IntegerLinear) for m in model.modules())


def quantise(
    model: nn.Module,
    precision: Precision,
    paths: Sequence[str],
    sums: Mapping[str, LayerSums] | None = None,
) -> None:
    """Quantise linear layers of a model in place; what else it has stays in float32.

    Layers that share their weights share the codes. It is in eval mode, on the CPU. A layer without
    sums of its inputs, by its weight's name, is rounded.

    Raises:
        ValueError: there is none, or the group is odd.
    """
    if not paths:
        raise ValueError(
            f"quantise={precision.kind!r}: no linear layer to quantise in {type(model).__name__}; "
            "allowed: models with nn.Linear or Conv1D beside their head of output"
        )
    if precision.group < 2 or precision.group % 2:
        raise ValueError(f"group={precision.group}: two codes make a byte; allowed: 2, 4, 6, ...")
    done: dict[int, nn.Module] = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for path in paths:
        layer: Any = model.get_submodule(path)
        if precision.kind == "int8-dynamic":
            small: nn.Module = IntegerLinear(layer)
        else:
            own = (sums or {}).get(names[id(layer.weight)])
            small = GroupedLinear(layer, precision, own)
        small.train(layer.training)
        twin: Any = done.setdefault(id(layer.weight), small)
        if twin is not small:
            for name, buffer in twin.named_buffers():
                setattr(small, name, buffer)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, small)
