"""Low rank: a layer's matrix as the product of two, and the best two of a rank.

In the (out, in) view W ≈ left @ right with `left` (out, rank) and `right` (rank, in). Only the
number of parameters tells whether that is smaller: rank * (out + in) against out * in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedprune.structure.edits import Edit
from fedprune.structure.layer_kinds import CONVOLUTIONS, is_plain_layer, plain_kind
from fedprune.structure.layers import groups
from fedprune.structure.matrices import matrix_of, out_in

_DAMPENING = 1e-9
"""Part of the mean diagonal that is added to second moments: decides where no input ever went."""


class Factored(nn.Sequential):
    """Two layers in place of one: ``0`` multiplies by `right`, ``1`` by `left`; then the bias.

    The tensors are called ``<path>.0.weight`` and ``<path>.1.weight``; the bias keeps its name.
    """

    bias: nn.Parameter | None

    def __init__(self, first: nn.Module, second: nn.Module, bias: nn.Parameter | None) -> None:
        super().__init__(first, second)
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """What the one layer gave back, up to what the rank leaves out."""
        first, second = self.children()
        out: Tensor = second(first(input))
        if self.bias is None:
            return out
        dimensions = len(second.kernel_size) if isinstance(second, CONVOLUTIONS) else 0
        return out + self.bias.view(-1, *[1] * dimensions)

    @property
    def weight(self) -> Tensor:
        """An empty tensor of the factors' type and device: T5 asks its layer's weight for both."""
        left: Any = self[1]
        return torch.empty(0, dtype=left.weight.dtype, device=left.weight.device)


def makes(layer: nn.Module) -> nn.Module:
    """The layer whose rows are the outputs: the left factor's, where there are factors."""
    return layer[1] if isinstance(layer, Factored) else layer


def reads(layer: nn.Module) -> nn.Module:
    """The layer whose columns are the inputs: the right factor's, where there are factors."""
    return layer[0] if isinstance(layer, Factored) else layer


def outputs(layer: nn.Module) -> int:
    """How many outputs a linear layer has, or two factors in its place."""
    return out_in(makes(layer))[0]


def inputs(layer: nn.Module) -> int:
    """How many inputs a linear layer has, or two factors in its place."""
    return out_in(reads(layer))[1]


def factor_layer(model: nn.Module, edit: Edit) -> None:
    """Replace the layer at ``edit.path`` by two of rank ``edit.kept[0]``, in place.

    The values are the best of that rank in the Frobenius norm; a rank above that of the matrix
    leaves zeros. GPT-2's Conv1D becomes two linear layers.

    Raises:
        ValueError: there is no such layer, it cannot be factored, or the rank is below 1
            or beyond both of the matrix's sizes.
    """
    layer: Any = _layer_at(model, edit)
    left, right = truncated(matrix_of(layer), edit.kept[0])
    first, second = _pair(layer, edit.kept[0])
    with torch.no_grad():
        first.weight.copy_(right.reshape(first.weight.shape))
        second.weight.copy_(left.reshape(second.weight.shape))
    pair = Factored(first, second, layer.bias).train(layer.training)
    first.weight.requires_grad_(layer.weight.requires_grad)
    second.weight.requires_grad_(layer.weight.requires_grad)
    parent, _, name = edit.path.rpartition(".")
    setattr(model.get_submodule(parent), name, pair)


def add_bias(model: nn.Module, edit: Edit) -> None:
    """Give the linear layer at ``edit.path``, or the factors in its place, a bias of zeros.

    Raises:
        ValueError: there is no such layer, or it has a bias.
    """
    layer: Any = dict(model.named_modules()).get(edit.path)
    if not isinstance(layer, nn.Linear | Factored) or layer.bias is not None:
        raise ValueError(f"bias of {edit.path!r}: no linear layer without one; allowed: such paths")
    like: Any = makes(layer).weight
    zeros = torch.zeros(outputs(layer), dtype=like.dtype, device=like.device)
    layer.bias = nn.Parameter(zeros, requires_grad=like.requires_grad)


def _layer_at(model: nn.Module, edit: Edit) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    layer = modules.get(edit.path)
    if layer is None or not edit.path or not is_plain_layer(layer) or groups(layer) > 1:
        raise ValueError(
            f"rank of {edit.path!r}: no ungrouped layer of that path that computes as its kind"
        )
    if isinstance(modules.get(edit.path.rpartition(".")[0]), Factored):  # it would grow for ever
        raise ValueError(f"rank of {edit.path!r}: a factor, no layer of the dense model")
    most = max(matrix_of(layer).shape)
    if len(edit.kept) != 1 or not 1 <= edit.kept[0] <= most:
        raise ValueError(f"rank of {edit.path!r}: {edit.kept} is not one number from 1 to {most}")
    sharing = [m for m in modules.values() if getattr(m, "weight", None) is layer.weight]
    if len(sharing) > 1:
        raise ValueError(f"rank of {edit.path!r}: its weight is another module's too")
    return layer


def _pair(layer: Any, rank: int) -> tuple[Any, Any]:
    """Layers of the right sizes, their values still to be set."""
    weight = layer.weight
    # Without their random start, which would be drawn from torch's global generator for nothing.
    like = {"device": weight.device, "dtype": weight.dtype, "bias": False}
    if not isinstance(layer, CONVOLUTIONS):
        sizes = matrix_of(layer).shape
        first = nn.utils.skip_init(nn.Linear, sizes[1], rank, **like)
        return first, nn.utils.skip_init(nn.Linear, rank, sizes[0], **like)
    kind = plain_kind(layer, CONVOLUTIONS)
    assert kind is not None  # else it has no path here
    first = nn.utils.skip_init(
        kind,
        layer.in_channels,
        rank,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        padding_mode=layer.padding_mode,
        **like,
    )
    outer = (rank, layer.out_channels, 1)
    return first, nn.utils.skip_init(kind, *outer, **like)


@torch.no_grad()
def truncated(matrix: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best factors of a rank: (out, rank) and (rank, in), float64, equally long.

    Without `moments` the product is nearest to the matrix W in the Frobenius norm (Eckart and
    Young 1936, the truncated SVD). With them it makes the least ‖(W - W')X‖_F for the inputs X
    whose X Xᵀ they are: SVD-LLM, Wang et al. 2024, arXiv 2403.07378, sect. 3.1, where ASVD (Yuan et
    al. 2023, arXiv 2312.05821) scales by channel. There W' = U_r Σ_r V_rᵀ S⁻¹ of the SVD of W S,
    S Sᵀ = X Xᵀ; here the same as U_r U_rᵀ W, which needs no inverse of S.

    Args:
        matrix: (out, in).
        rank: any; above min(out, in) the rest is 0.
        moments: (in, in), Σ x xᵀ or its mean; its scale does not matter.
    """
    w = matrix.double()
    outputs = _left_vectors(w if moments is None else w @ root_of(moments))[:, :rank]
    right = outputs.t() @ w
    length = right.norm(dim=1).sqrt()
    length[length == 0] = 1.0
    left, right = outputs * length, right / length.unsqueeze(1)
    more = rank - left.shape[1]
    return nn.functional.pad(left, (0, more)), nn.functional.pad(right, (0, 0, 0, more))


def root_of(moments: Tensor) -> Tensor:
    """The Cholesky factor L of second moments, L Lᵀ = them, (in, in) float64, slightly damped.

    By ten times more at a time where they are singular but for the rounding of float32 sums.
    """
    wide = moments.double()
    mean = float(wide.diagonal().mean())
    damping, failed = (_DAMPENING * mean if mean > 0 else 1.0), True
    while failed:
        root: Tensor
        root, info = torch.linalg.cholesky_ex(wide + damping * torch.eye(len(wide)).to(wide))
        failed, damping = bool(info), 10 * damping
    return root


def _left_vectors(a: Tensor) -> Tensor:
    """Left singular vectors as columns, those of large singular values first, (out, min(a.shape)).

    From the eigenvectors of the smaller Gram matrix: several times faster than an SVD, and exact
    but for singular values below 1e-8 of the largest, whose order is not told apart.
    """
    if a.shape[0] <= a.shape[1]:
        vectors: Tensor = torch.linalg.eigh(a @ a.t()).eigenvectors
        return vectors.flip(1)
    q, r = torch.linalg.qr(a)
    wide: Tensor = q @ _left_vectors(r)
    return wide
