"""Parts of a model by the places of its units: the first so many, nested in one another."""

from __future__ import annotations

import torch

from fedprune.selection.unit_numbers import Shape
from fedprune.selection.units import unit_labels
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Tensors


def by_position(layout: Layout, unit: str, unit_shape: Shape | None = None) -> Tensors:
    """A score of every prunable weight that falls with the place of its unit: 1 at first, above 0.

    Units are counted within their tensor, so that the same part of every tensor comes first; those
    that are whole tensors, as blocks of a stack, over the model. Weights in no unit have 1.

    Raises:
        ValueError: the model has no such units.
    """
    origin = layout.origin
    if origin is not None:
        return layout.from_origin(by_position(origin.layout, unit, unit_shape))
    labels = unit_labels(layout, unit, unit_shape)
    found = {n: label[label >= 0].unique() for n, label in labels.items()}
    if all(len(units) <= 1 for units in found.values()):
        found = dict.fromkeys(found, torch.cat(list(found.values())).unique())
    return {n: _falling(label, found[n]) for n, label in labels.items()}


def _falling(label: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    place = torch.searchsorted(units, label.clamp(min=0)).double()
    return torch.where(label >= 0, 1.0 - place / max(1, len(units)), 1.0)
