"""Principal directions of what runs between a decoder's layers, and its weights in their basis.

Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024, section 3.3: Q are the eigenvectors of Σ x xᵀ, x
what a norm gives before its weight. There each norm's signals have a Q of their own; here the sums
of all norms are added up and there is one (`fedprune.structure.slicing` says why). So clients send
one matrix, whatever the depth, and federated equals pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.scores.inputs import inputs_of, products, rows_of
from fedprune.scores.score import Probe, Shapes, Statistic
from fedprune.structure.layout import Layout
from fedprune.structure.slicing import ResidualPath, residual_path
from fedprune.tensors.hooks import removed_after
from fedprune.tensors.named import Tensors


def _shapes(layout: Layout, names: Sequence[str], _unit: str, _probes: int) -> Shapes:
    """Of the one tensor asked about, the embeddings: sums over the channels that they have."""
    (table,) = names
    width = {**layout.frozen, **layout.shapes}[table][1]
    return {inputs_of(table): torch.Size([width, width]), rows_of(table): torch.Size([1])}


@torch.no_grad()
def _collect(probe: Probe) -> Tensors:
    (table,) = probe.prunable
    model, shapes = probe.model, _shapes(probe.layout, [table], "", 0)
    device = next(model.parameters()).device
    sums = {n: torch.zeros(s, dtype=torch.float64, device=device) for n, s in shapes.items()}

    def seen(norm: Any, given: tuple[Tensor, ...], _out: Tensor) -> None:
        x = given[0].detach().flatten(0, -2)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        sums[inputs_of(table)] += products(x)
        sums[rows_of(table)] += len(x)

    norms: list[nn.Module] = [model.get_submodule(p) for p in residual_path(model).norms]
    with removed_after([norm.register_forward_hook(seen) for norm in norms]):
        for batch in probe.batches:
            probe.loss(model, batch)
    return sums


SIGNALS = Statistic(_collect, _shapes, passes="1 forward", signed=True)
"""Σ x xᵀ of what all norms on the residual path give, before their weights, and how many rows."""


def principal(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (channels, channels), one a column, and the Σ x² along each; the largest first.

    Float64. Each has the sign that makes its largest number positive.
    """
    energies, basis = torch.linalg.eigh(sums.double())
    energies, basis = energies.flip(0).clamp_min(0.0), basis.flip(1)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return basis * largest.sign(), energies


def in_basis(weights: Mapping[str, Tensor], path: ResidualPath, basis: Tensor) -> Tensors:
    """All that runs along the residual path in another basis; what the model says stays the same.

    The basis (channels, left) is orthonormal; with fewer columns the rest of the states is left
    out. The new tensors are in their types; the head is among them, also where it was tied.
    """
    width, left = basis.shape
    out: Tensors = {}
    for name, norm in path.read.items():
        w = weights[path.table if name in path.tied else name]
        out[name] = ((w.double() * weights[norm].double()) @ basis).to(w.dtype)
        # The mean is over fewer channels: sliced_keys says why this is the root of how many fewer.
        out[norm] = weights[norm].new_full((left,), (width / left) ** 0.5)
    for name in path.written:
        w = weights[name]
        wide = w.double() @ basis if name == path.table else basis.T @ w.double()
        out[name] = wide.to(w.dtype)
    return out
