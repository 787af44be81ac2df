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
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.groups import (
    FAMILIES,
    Family,
    Lane,
    lanes,
    out_in,
)
from fedprune.structure.layer_kinds import family_name, is_transposed
from fedprune.structure.low_rank_layers import factor, makes, reads
from fedprune.structure.position_bias import Positions, attend_with, is_unread
from fedprune.structure.removal import (
    Gone,
    pass_through,
    remove,
    replace,
)
from fedprune.structure.sharing import share_weight
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
    before = attentions_of(model)
    for edit in todo:
        EDITS[edit.kind](model, edit)
    if todo:
        renumber(model, before)
        _drop_unread_positions(model)
        pass_through(model)
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
    module, family = _found(model, edit)
    through = lanes(module, family)
    units = len(through[0].index) if through else 0
    if list(edit.kept) != sorted(set(edit.kept) & set(range(units))):
        raise ValueError(
            f"edit {edit.kind!r} of {edit.path!r}: keeps {list(edit.kept)[:8]}; "
            f"allowed: ascending numbers below {units}"
        )
    twins = _twins(model, module, family)
    if not edit.kept:
        for twin in twins:
            _remove(model, twin, family)
    elif len(edit.kept) < units:
        kept = torch.tensor(edit.kept)
        fresh = {old: new for lane in through for old, new in _sliced(lane, kept).items()}
        for changed in _swapped(model, fresh):
            _follow(changed)
        for twin in twins:
            _mark(twin, kept)


def _mark(module: Any, kept: Tensor) -> None:
    """Say that its units are no longer those of the dense model."""
    module.was_cut = True
    if family_name(module) == "T5Attention":
        attend_with(module, kept)


def _twins(model: nn.Module, module: nn.Module, family: Family) -> list[nn.Module]:
    """The modules whose units run through the same weights, itself included."""

    def weights(other: nn.Module) -> list[int]:
        return [id(lane.layer.weight) for lane in lanes(other, family)]

    mine = weights(module)
    alike = (m for m in model.modules() if type(m) is type(module))
    return [m for m in alike if m is module or weights(m) == mine]


def _found(model: nn.Module, edit: Edit) -> tuple[nn.Module, Family]:
    module = dict(model.named_modules()).get(edit.path)
    family = None if module is None else FAMILIES.get(family_name(module))
    if module is None or family is None or family.kind != edit.kind:
        has = "nothing" if module is None else type(module).__name__
        known = ", ".join(name for name, f in FAMILIES.items() if f.kind == edit.kind)
        raise ValueError(f"edit {edit.kind!r} of {edit.path!r}: there is {has}; allowed: {known}")
    if hasattr(module, "was_cut"):
        raise ValueError(f"edit {edit.kind!r} of {edit.path!r}: cut already; allowed: a dense one")
    return module, family


def _sliced(lane: Lane, kept: Tensor) -> dict[nn.Parameter, nn.Parameter]:
    """The layer's new parameters by the old ones."""
    layer: Any = lane.layer
    # GPT-2's rows lie as q, k, v in turn, so a unit's are not together: sorted, they stay so.
    index = lane.index[kept].reshape(-1).sort().values
    fresh = {layer.weight: _selected(layer.weight, _axis(lane), index)}
    if lane.bias is not None:
        fresh[lane.bias] = _selected(lane.bias, 0, index)
    return fresh


def _axis(lane: Lane) -> int:
    """The dimension of the weight in which the units lie."""
    transposed = is_transposed(lane.layer)
    return int((lane.axis == "column") != transposed)


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


def _remove(model: nn.Module, module: nn.Module, family: Family) -> None:
    if getattr(module, "has_relative_attention_bias", False):
        replace(model, module, Positions(module), {"SelfAttention": "layer_norm"})
    else:
        remove(model, module, family)


def _drop_unread_positions(model: nn.Module) -> None:
    for stack in [m for m in model.modules() if family_name(m) == "T5Stack"]:
        for positions in [m for m in stack.modules() if isinstance(m, Positions)]:
            if is_unread(stack):
                replace(model, positions, Gone("o", None, nn.Identity(), ("position_bias", "")))


def _follow(module: Any) -> None:
    """Let a module's numbers say what its weights' shapes are."""
    for name, number in _numbers_of(module).items():
        setattr(module, name, number(module))


def _numbers_of(module: nn.Module) -> Numbers:
    if isinstance(module, nn.Linear):
        return _LINEAR
    return _CONV1D if is_transposed(module) else FOLLOW.get(family_name(module), {})


def _outputs(layer: nn.Module) -> int:
    return out_in(makes(layer))[0]


def _inputs(layer: nn.Module) -> int:
    return out_in(reads(layer))[1]


Numbers = dict[str, Callable[[Any], int]]
"""A module's own numbers that follow the shapes of its weights."""

_LINEAR: Numbers = {
    "out_features": lambda m: m.weight.shape[0],
    "in_features": lambda m: m.weight.shape[1],
}
_CONV1D: Numbers = {"nx": lambda m: m.weight.shape[0], "nf": lambda m: m.weight.shape[1]}
_BERT: Numbers = {
    "num_attention_heads": lambda m: _outputs(m.query) // m.attention_head_size,
    "all_head_size": lambda m: _outputs(m.query),
}

# In model order a layer comes after what it is in, so these read weights, not numbers.
FOLLOW: dict[str, Numbers] = {
    "GPT2Attention": {
        "split_size": lambda m: _inputs(m.c_proj),
        "num_heads": lambda m: _inputs(m.c_proj) // m.head_dim,
    },
    "T5Attention": {
        "inner_dim": lambda m: _inputs(m.o),
        "n_heads": lambda m: _inputs(m.o) // m.key_value_proj_dim,
    },
    "LlamaMLP": {"intermediate_size": lambda m: _inputs(m.down_proj)},
    "BertSelfAttention": _BERT,
    "BertCrossAttention": _BERT,
    "RobertaSelfAttention": _BERT,
    "RobertaCrossAttention": _BERT,
}

EDITS: dict[str, Callable[[nn.Module, Edit], None]] = {
    "rank": factor,
    "head": cut_units,
    "neuron": cut_units,
    "channel": cut_channels,
    "vocab": cut_vocabulary,
    "share": share_weight,
}
