"""One weight for two layers that are equal."""

from __future__ import annotations

from torch import nn

from fedprune.structure.edits import Edit
from fedprune.structure.layer_kinds import is_layer


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
