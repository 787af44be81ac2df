"""The weights of one head or neuron: what makes it, what it is scaled by, what reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.structure.groups import Group, UnitSlice
from fedprune.structure.layout import Layout, as_rows
from fedprune.tensors.named import Masks


@dataclass(frozen=True)
class Attention:
    """The matrices of the heads of one attention, float64; a head is a KV group under GQA.

    Attributes:
        query: (heads, queries, size, in), several queries to a head under GQA.
        key: (heads, size, in).
        value: (heads, size, in).
        output: (heads, queries, out, size).
        biases: of query, key and value in the shapes above without the last axis; None: no bias.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    biases: tuple[Tensor, Tensor, Tensor] | None


def bias_of(layout: Layout, tensor: str) -> str | None:
    """The name of the bias beside a weight, if the state has one."""
    path = tensor.removesuffix(".weight")
    names = (f"{path}.bias", f"{path.removesuffix('.1')}.bias")  # the second one beside factors
    return next((name for name in names if name in layout.shapes), None)


def reader_of(group: Group) -> UnitSlice:
    """The part of the layer that reads a group's units."""
    return next(part for part in group.parts if part.axis == "column")


def producers_of(group: Group) -> list[UnitSlice]:
    """The parts of the layers that make a group's units."""
    return [part for part in group.parts if part.axis == "row"]


def incoming(group: Group, layout: Layout, weights: Mapping[str, Tensor]) -> Tensor:
    """What makes each unit, (units, numbers) float64: its rows and biases in every producer."""
    parts = []
    for part in producers_of(group):
        rows = as_rows(layout, part.tensor, weights[part.tensor]).double()
        parts.append(rows[part.index].flatten(1))
        bias = bias_of(layout, part.tensor)
        if bias is not None:
            parts.append(weights[bias].double()[part.index])
    return torch.cat(parts, dim=1) if parts else torch.empty(len(group.parts[0].index), 0)


def outgoing(group: Group, layout: Layout, weights: Mapping[str, Tensor]) -> Tensor:
    """What reads each unit, (units, out, width) float64."""
    part = reader_of(group)
    rows = as_rows(layout, part.tensor, weights[part.tensor]).double()
    return rows[:, part.index].permute(1, 0, 2)


def attention_of(group: Group, layout: Layout, weights: Mapping[str, Tensor]) -> Attention | None:
    """The matrices of a group of heads; None where they are not all there or are factored.

    GPT-2 makes queries, keys and values in one layer, in its cross-attention keys and values.
    """
    named = {part.tensor: part for part in producers_of(group)}
    pieces = [(tensor, index) for tensor, part in named.items() for index in _pieces(part)]
    if len(named) == 2 and len(pieces) == 3:
        pieces = [pieces[2], *pieces[:2]]  # keys and values, then queries
    reader = reader_of(group)
    factored = [t for t in (*named, reader.tensor) if t.endswith((".0.weight", ".1.weight"))]
    if group.kind != "head" or len(pieces) != 3 or factored:
        return None
    rows = [as_rows(layout, t, weights[t]).double()[i] for t, i in pieces]
    named_biases = [(b, i) for t, i in pieces if (b := bias_of(layout, t)) is not None]
    if len(named_biases) not in (0, 3):
        return None
    heads, size = rows[1].shape[:2]
    shapes = [(heads, -1, size), (heads, size), (heads, size)]
    q, k, v = (r.reshape(*s, r.shape[-1]) for r, s in zip(rows, shapes, strict=True))
    read = outgoing(group, layout, weights)
    output = read.unflatten(2, (-1, size)).transpose(1, 2)
    if not named_biases:
        return Attention(q, k, v, output, None)
    flat = [weights[b].double()[i] for b, i in named_biases]
    beside = [b.reshape(s) for b, s in zip(flat, shapes, strict=True)]
    return Attention(q, k, v, output, (beside[0], beside[1], beside[2]))


def _pieces(part: UnitSlice) -> list[Tensor]:
    """A producer's rows by what they are for."""
    return list(part.index.split(list(part.pieces or [part.index.shape[1]]), dim=1))


def without_units(
    masks: Mapping[str, Tensor], layout: Layout, gone: Mapping[str, tuple[int, ...]]
) -> Masks:
    """The masks with all weights of these units (by path of their group) removed."""
    out = {name: mask.clone() for name, mask in masks.items()}
    for group in layout.structure.groups:
        for part in group.parts:
            index = part.index[list(gone.get(group.path, ()))].flatten()
            rows = as_rows(layout, part.tensor, out[part.tensor])
            # A view where the layer is linear or GPT-2's; a convolution's rows are the first axis.
            rows.index_fill_(0 if part.axis == "row" else 1, index, False)
    return out
