"""Units cut out of a model's tensors: it is really smaller, and says what the masked one says.

Rows of the layers that make a unit, their biases, and columns of the layer that reads it are
sliced; so what is masked must be the reader's columns, or the units' bias flows on. A cut model
keeps its classes and the names of the tensors that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.structure.caching import attentions_of, renumber
from fedprune.structure.channels.cut import cut_channels
from fedprune.structure.channels.groups import TRACED
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.experts import cut_experts, tidy_mixtures
from fedprune.structure.families.catalog import FAMILIES, SUBLAYERS
from fedprune.structure.families.family import Sizes, SubLayer
from fedprune.structure.layer_kinds import family_name, is_layer
from fedprune.structure.low_rank_layers import add_bias, factor_layer
from fedprune.structure.matrices import dimension_of, own_sizes
from fedprune.structure.projections import Projection, projections
from fedprune.structure.removal import remove
from fedprune.structure.slicing import slice_channels
from fedprune.structure.vocabulary import cut_vocabulary


def reshaped(model: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    """The model in the shape that the edits give it: changed in place, and returned.

    Values are sliced along: what survives are the same numbers. Tensors that stay keep their
    names, ties and whether they are frozen; optimizers hold the old parameters.

    Args:
        model: dense, as its task builds it. Edits name original indices, so a model that was cut
            already cannot be cut again: cut a dense one, by the later edits alone.
        edits: at most one of a kind for a path, in any order.

    Raises:
        ValueError: an unknown kind, a path where there is no such module, indices that are not
            ascending numbers of its units, or two edits of one kind for one path.
    """
    todo = ordered(edits)
    before, found = attentions_of(model), hasattr(model, TRACED)
    for edit in todo:
        EDITS[edit.kind](model, edit)
    if not found and hasattr(model, TRACED):
        delattr(model, TRACED)  # whoever changes the model from here on has it traced anew
    if todo:
        renumber(model, before)
        for family in FAMILIES.values():
            family.tidy(model)
        tidy_mixtures(model)
        _pass_through(model)
    return model


def ordered(edits: Iterable[Edit]) -> Edits:
    """The edits in the one order in which they are replayed: by kind as in `EDITS`, then by path.

    Raises:
        ValueError: an unknown kind, or two edits of one kind for one path.
    """
    found: dict[tuple[int, str], Edit] = {}
    kinds = list(EDITS)
    for edit in edits:
        if edit.kind not in EDITS:
            raise ValueError(f"edit {edit.kind!r}: no such kind; allowed: {', '.join(kinds)}")
        key = kinds.index(edit.kind), edit.path
        if key in found:
            raise ValueError(f"edit {edit.kind!r} of {edit.path!r}: there are two")
        found[key] = edit
    return tuple(found[key] for key in sorted(found))


def cut_units(model: nn.Module, edit: Edit) -> None:
    """Cut heads or neurons: those that are not in `edit.kept`; without any, the whole sub-layer.

    Of modules that share their weights all are cut.

    Raises:
        ValueError: as `reshaped`.
    """
    module, sublayer = _found(model, edit)
    through = projections(module, sublayer)
    units = len(through[0].index) if through else 0
    if list(edit.kept) != sorted(set(edit.kept) & set(range(units))):
        raise ValueError(
            f"edit {edit.kind!r} of {edit.path!r}: keeps {list(edit.kept)[:8]}; "
            f"allowed: ascending numbers below {units}"
        )
    twins = _twins(model, module, sublayer)
    if not edit.kept:
        for twin in twins:
            remove(model, twin, sublayer)
    elif len(edit.kept) < units:
        kept = torch.tensor(edit.kept)
        fresh = {old: new for each in through for old, new in _sliced(each, kept).items()}
        for changed in _swapped(model, fresh):
            _follow(changed)
        for twin in twins:
            setattr(twin, CUT, True)
            sublayer.after_cut(twin, kept)


def _twins(model: nn.Module, module: nn.Module, sublayer: SubLayer) -> list[nn.Module]:
    """The modules whose units run through the same weights, itself included."""

    def weights(other: nn.Module) -> list[int]:
        return [id(p.layer.weight) for p in projections(other, sublayer)]

    mine = weights(module)
    alike = (m for m in model.modules() if type(m) is type(module))
    return [m for m in alike if m is module or weights(m) == mine]


def _found(model: nn.Module, edit: Edit) -> tuple[nn.Module, SubLayer]:
    module = dict(model.named_modules()).get(edit.path)
    sublayer = None if module is None else SUBLAYERS.get(family_name(module))
    if module is None or sublayer is None or sublayer.kind != edit.kind:
        has = "nothing" if module is None else type(module).__name__
        known = ", ".join(name for name, s in SUBLAYERS.items() if s.kind == edit.kind)
        raise ValueError(f"edit {edit.kind!r} of {edit.path!r}: there is {has}; allowed: {known}")
    if hasattr(module, CUT):
        raise ValueError(f"edit {edit.kind!r} of {edit.path!r}: cut already; allowed: a dense one")
    return module, sublayer


def _sliced(projection: Projection, kept: Tensor) -> dict[nn.Parameter, nn.Parameter]:
    """The layer's new parameters by the old ones."""
    layer: Any = projection.layer
    # GPT-2's rows lie as q, k, v in turn, so a unit's are not together: sorted, they stay so.
    index = projection.index[kept].reshape(-1).sort().values
    fresh = {layer.weight: _selected(layer.weight, dimension_of(layer, projection.axis), index)}
    if projection.bias is not None:
        fresh[projection.bias] = _selected(projection.bias, 0, index)
    return fresh


def _selected(old: nn.Parameter, axis: int, index: Tensor) -> nn.Parameter:
    values = old.detach().index_select(axis, index.to(old.device))
    return nn.Parameter(values, requires_grad=old.requires_grad)


def _swapped(model: nn.Module, fresh: dict[nn.Parameter, nn.Parameter]) -> list[nn.Module]:
    """Put new parameters in the place of old ones, wherever they are; every module concerned.

    Those are the layers and what they are inside of.
    """
    owners = set()
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None and old in fresh:
                setattr(module, name, fresh[old])
                owners.add(module)
    return [m for m in model.modules() if owners & set(m.modules())]


def _follow(module: Any) -> None:
    """Let a module's numbers say what its weights' shapes are."""
    sizes = own_sizes(module) or _SIZES.get(family_name(module), {})
    for name, number in sizes.items():
        setattr(module, name, number(module))


def _pass_through(model: nn.Module) -> None:
    """Let blocks of which nothing is left hand on what they are given.

    They stay modules of their kind, so that the model's hidden states are still counted by block.
    """
    passes = {name: forward for f in FAMILIES.values() for name, forward in f.passes.items()}
    for block in model.modules():
        forward = passes.get(family_name(block))
        if forward is not None and next(block.parameters(), None) is None:
            block.forward = forward


def share_weight(model: nn.Module, edit: Edit) -> None:
    """Let the layer at ``edit.path`` use the weight of the one at ``edit.like``, in place.

    Its own values are given up; biases stay two. The shared tensor is one of the state, under the
    name of whichever of the two the model has first.

    Raises:
        ValueError: there are no two such layers of one kind and shape.
    """
    modules = dict(model.named_modules())
    layer, other = modules.get(edit.path), modules.get(edit.like)
    if layer is None or other is None or not is_layer(layer) or type(layer) is not type(other):
        raise ValueError(f"share {edit.path!r} with {edit.like!r}: no two layers of one kind")
    if layer.weight.shape != other.weight.shape:
        raise ValueError(
            f"share {edit.path!r} with {edit.like!r}: "
            f"{tuple(layer.weight.shape)} is not {tuple(other.weight.shape)}"
        )
    layer.weight = other.weight


# In model order a layer comes after what it is in, so these read weights, not numbers.
_SIZES: dict[str, Sizes] = {
    name: sizes for f in FAMILIES.values() for name, sizes in f.sizes.items()
}

CUT = "was_cut"
"""Attribute of a module whose units are no longer those of the dense model."""

EDITS: dict[str, Callable[[nn.Module, Edit], None]] = {
    "rank": factor_layer,
    "slice": slice_channels,
    "expert": cut_experts,
    "bias": add_bias,
    "head": cut_units,
    "neuron": cut_units,
    "channel": cut_channels,
    "vocab": cut_vocabulary,
    "share": share_weight,
}
