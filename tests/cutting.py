"""What is cut in the tests of surgery, in every family, and the masks that say the same."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fedprune.structure.cuts import edits_of
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout, as_rows
from fedprune.structure.surgery import reshaped
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Masks

Gone = dict[tuple[str, str], set[int]]
"""By kind and path of a group: the units that go."""


def some(layout: Layout, *kinds: str) -> Gone:
    """Of every group of the kinds another number of units, never all."""
    gone: Gone = {}
    for i, group in enumerate(g for g in layout.structure.groups if g.kind in kinds):
        units = len(group.parts[0].index)
        gone[group.kind, group.path] = {(i + j) % units for j in range(1 + i % (units - 1))}
    return gone


def every(layout: Layout, within: str, kind: str = "") -> Gone:
    """All units of the groups in a part of the model."""
    return {
        (g.kind, g.path): set(range(len(g.parts[0].index)))
        for g in layout.structure.groups
        if f"{g.path}.".startswith(within) and kind in g.kind
    }


def block(layout: Layout, number: int) -> Gone:
    """All of a block."""
    return every(layout, f"{layout.structure.blocks[number].path}.")


def last(layout: Layout, kind: str) -> Gone:
    """All units of the last group of a kind."""
    path = [g.path for g in layout.structure.groups if g.kind == kind][-1]
    return every(layout, f"{path}.", kind)


CASES: dict[str, Callable[[Layout], Gone]] = {
    "heads": lambda x: some(x, "head"),
    "neurons": lambda x: some(x, "neuron"),
    "both": lambda x: some(x, "head", "neuron"),
    "an attention": lambda x: some(x, "neuron") | last(x, "head"),
    "a feed-forward": lambda x: some(x, "head") | last(x, "neuron"),
    "the last block": lambda x: some(x, "head", "neuron") | block(x, -1),
    "the first block": lambda x: some(x, "head", "neuron") | block(x, 0),
    "the first block alone": lambda x: block(x, 0),
    "all attentions": lambda x: every(x, "", "head"),
    "all feed-forwards": lambda x: every(x, "", "neuron"),
    "everything": lambda x: every(x, ""),
}


def masks_of(layout: Layout, gone: Gone) -> Masks:
    """Masks that remove all weights of those units."""
    masks = {n: torch.ones(layout.shapes[n], dtype=torch.bool) for n in layout.prunable}
    for group in layout.structure.groups:
        units = sorted(gone.get((group.kind, group.path), ()))
        for part in group.parts:
            rows = as_rows(layout, part.tensor, masks[part.tensor])
            (rows if part.axis == "row" else rows.t())[part.index[units].reshape(-1)] = False
    return masks


@torch.no_grad()
def masked_model(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy with exactly 0.0 where a mask is False."""
    model = copy.deepcopy(model)
    state = state_of(model)
    for name, mask in masks.items():
        state[name].masked_fill_(~mask, 0.0)
    return model


@dataclass(frozen=True)
class Cut:
    """A model whose units are silent, and the same one without them."""

    masks: Masks
    edits: Edits
    silent: nn.Module
    small: nn.Module


def cut(model: nn.Module, layout: Layout, gone: Gone) -> Cut:
    """Copies of a model without those units."""
    masks = masks_of(layout, gone)
    silent, edits = masked_model(model, masks), edits_of(masks, layout)
    return Cut(masks, edits, silent, reshaped(copy.deepcopy(silent), edits))
