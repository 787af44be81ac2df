"""Which tensors of a model are prunable, found by the kind of module that owns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedprune.structure.channels.groups import channel_groups
from fedprune.structure.groups import Structure, structure_of
from fedprune.structure.layer_kinds import is_layer
from fedprune.structure.matrices import as_matrix, from_matrix, kind_of
from fedprune.structure.prunable import prunable_of, staying
from fedprune.tensors.models import NOTES, frozen_of, state_of
from fedprune.tensors.named import Tensors

if TYPE_CHECKING:
    from fedprune.structure.cuts import Places


@dataclass(frozen=True)
class Origin:
    """The model before parts of it were cut out, and where what is left was in it."""

    layout: Layout
    places: Places


@dataclass(frozen=True)
class Layout:
    """What both sides of a run know of a model without sending it.

    Attributes:
        shapes: every tensor of the state (`fedprune.tensors.models.state_of`) and its shape.
        prunable: names of the tensors that masks are for, in model order.
        spared: names of the other parameters (embeddings, norms, biases, heads of output).
        variances: BatchNorm's running variance to its running mean, by name.
        kinds: how each prunable tensor is laid out, a name in
            `fedprune.structure.matrices.LAYER_KINDS`.
        structure: attention, feed-forward layers, blocks and channels, as far as they were
            recognised.
        frozen: parameters and constant buffers that are no part of the state, and their shapes.
        origin: of a model that was cut: the one before. Sparsities, floors and densities count
            its weights, so that a choice is the same whether what went is still there as zeros.
        dense: how many prunable weights the dense model has, where that is another number.
        stays: what each of the spared parameters is, in words.
        notes: what its loading has to say to people.
    """

    shapes: dict[str, torch.Size]
    prunable: tuple[str, ...]
    spared: tuple[str, ...]
    variances: dict[str, str]
    kinds: dict[str, str] = field(default_factory=dict)
    structure: Structure = field(default_factory=Structure)
    frozen: dict[str, torch.Size] = field(default_factory=dict)
    origin: Origin | None = None
    dense: int | None = None
    stays: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many parameters the model has, frozen ones too."""
        shapes = {**self.shapes, **self.frozen}
        return sum(shapes[name].numel() for name in (*self.prunable, *self.spared))

    @property
    def whole(self) -> int:
        """How many prunable weights the dense model has: what sparsity is a fraction of."""
        if self.dense is not None:
            return self.dense
        return sum(self.shapes[name].numel() for name in self.prunable)

    @property
    def statistics(self) -> frozenset[str]:
        """Float buffers of the state, such as BatchNorm's means and variances."""
        return frozenset(self.shapes) - {*self.prunable, *self.spared}

    def in_origin(self, tensors: Tensors) -> Tensors:
        """Tensors in the shapes of the model before it was cut, 0 or False where it was.

        Those that are gone altogether come along if all prunable tensors that are left do.
        """
        if self.origin is None:
            return tensors.copy()
        whole = set(self.prunable) <= tensors.keys()
        gone = self.origin.layout.prunable if whole else ()
        return self.origin.places.expand(tensors, gone=gone)

    def from_origin(self, tensors: Tensors) -> Tensors:
        """What is left of tensors in the shapes of the model before it was cut."""
        if self.origin is None:
            return tensors.copy()
        return self.origin.places.restrict(tensors)


def matrix_shape(layout: Layout, name: str) -> torch.Size:
    """The (out, in) of a prunable tensor by `as_rows`."""
    return as_rows(layout, name, torch.empty(layout.shapes[name], device="meta")).shape


def as_rows(layout: Layout, name: str, tensor: Tensor) -> Tensor:
    """A tensor shaped like a prunable one as (out, in): `fedprune.structure.matrices.as_matrix`."""
    return as_matrix(layout.kinds.get(name, "other"), tensor)


def from_rows(layout: Layout, name: str, rows: Tensor) -> Tensor:
    """The inverse of `as_rows`."""
    return from_matrix(layout.kinds.get(name, "other"), rows, layout.shapes[name])


def as_inputs(layout: Layout, name: str, tensor: Tensor) -> Tensor:
    """A tensor shaped like a prunable one as rows of inputs that n:m counts along, (rows, in).

    For a linear layer as `as_rows`. For a convolution a row is the in / groups input channels of
    one output channel at one place of the kernel: along these the hardware's pattern runs (NVIDIA's
    ASP, Mishra et al. 2021, arXiv 2104.08378).
    """
    if layout.kinds.get(name) != "conv":
        return as_rows(layout, name, tensor)
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


def from_inputs(layout: Layout, name: str, rows: Tensor) -> Tensor:
    """The inverse of `as_inputs`."""
    if layout.kinds.get(name) != "conv":
        return from_rows(layout, name, rows)
    out, inputs, *kernel = layout.shapes[name]
    return rows.reshape(out, *kernel, inputs).movedim(-1, 1)


def layout_of(
    model: nn.Module,
    *,
    output: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
) -> Layout:
    """The layout of a model.

    Prunable are the weights of linear and convolution layers (GPT-2's Conv1D too), except the
    modules named in `output` and whatever they are tied to, and except frozen ones.

    Args:
        model: any module.
        output: module names of the heads of output.
        exclude: shell patterns of parameter names that are spared as well.
        include: shell patterns of parameter names that are prunable in spite of the rule.

    Raises:
        ValueError: a pattern matches no parameter or a frozen one, `output` names no module, a
            layer's weight is computed from other parameters, or nothing is left to prune.
    """
    prunable = prunable_of(model, output, exclude, include)
    stays = staying(model, prunable, output, exclude)
    structure = structure_of(model, prunable)
    groups = (*structure.groups, *channel_groups(model, prunable))
    return Layout(
        shapes={name: t.shape for name, t in state_of(model).items()},
        prunable=prunable,
        spared=tuple(stays),
        variances=_batch_norm_variances(model),
        kinds=_kinds(model, prunable),
        structure=replace(structure, groups=groups),
        frozen={name: t.shape for name, t in frozen_of(model).items()},
        stays=stays,
        notes=getattr(model, NOTES, ()),
    )


def _kinds(model: nn.Module, prunable: Sequence[str]) -> dict[str, str]:
    names = {id(p): name for name, p in model.named_parameters()}
    found = dict.fromkeys(prunable, "other")
    for module in filter(is_layer, model.modules()):
        name = names.get(id(module.weight), "")
        if name in found:
            found[name] = kind_of(module)
    return found


def _batch_norm_variances(model: nn.Module) -> dict[str, str]:
    norms = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None
    ]
    dotted = [f"{name}." if name else "" for name in norms]
    return {f"{name}running_var": f"{name}running_mean" for name in dotted}
