"""Take duplicates out: the weights that read a unit are added to those that read its like.

Exact where two neurons are made by the same weights, and where two heads look at the same places
and what they bring together fits into one. What is merged although it is only nearly the same
makes an error, which is computed on the clients' second moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedprune.redundancy.dead import UnitsOfLayers
from fedprune.redundancy.moments import Inputs
from fedprune.redundancy.unit_weights import (
    Attention,
    attention_of,
    bias_of,
    incoming,
    producers_of,
    reader_of,
)
from fedprune.structure.groups import Group
from fedprune.structure.layout import Layout, as_rows
from fedprune.tensors.named import Tensors

_EXACT = 1e-6
"""Of heads: relative distance of products, and of what does not fit into one, called nothing."""


@dataclass(frozen=True)
class Merged:
    """What merging makes of a model.

    Attributes:
        weights: the tensors that change, whole, in the shapes they had.
        gone: the units that nothing needs any more.
        errors: by path of a group, the error of its output as a part of the output: the root of
            the mean square over all rows of all clients. 0.0 where equals were merged; None where
            others were and no second moments are known.
    """

    weights: Tensors = field(default_factory=dict)
    gone: UnitsOfLayers = field(default_factory=dict)
    errors: dict[str, float | None] = field(default_factory=dict)


def merged(
    layout: Layout, weights: Mapping[str, Tensor], inputs: Inputs | None, within: float = 0.0
) -> Merged:
    """All duplicates of a model merged, neurons and heads.

    Args:
        layout: its layout.
        weights: its state, 0.0 where a mask is False.
        inputs: second moments, for errors and for the factor between near duplicates.
        within: neurons merge where everything that makes them differs by at most this part of the
            larger norm; 0.0: only where it is equal. Heads only merge where that is exact.
    """
    out = Merged()
    for group in layout.structure.groups:
        if group.kind == "neuron":
            _merge_neurons(out, group, layout, weights, inputs, within)
        elif group.kind == "head":
            _merge_heads(out, group, layout, weights)
    return out


def _merge_neurons(
    out: Merged,
    group: Group,
    layout: Layout,
    weights: Mapping[str, Tensor],
    inputs: Inputs | None,
    within: float,
) -> None:
    made = incoming(group, layout, weights)
    stands_for = representatives(made, within)
    gone = tuple(i for i, r in enumerate(stands_for) if r != i)
    if not gone or not made.shape[1]:
        return
    reader = reader_of(group)
    rows = as_rows(layout, reader.tensor, weights[reader.tensor]).double()
    index = reader.index[:, 0]
    # In the order of units, whatever columns they have; put back below.
    read = rows[:, index]
    moments = None
    if inputs is not None and reader.tensor in inputs.products:
        moments = inputs.moments(reader.tensor)[index][:, index]
    equal = all(torch.equal(made[i], made[stands_for[i]]) for i in gone)
    added = _added(read, stands_for, None if equal else moments)
    new = rows.clone()
    new[:, index] = added
    out.weights[reader.tensor] = _like(layout, reader.tensor, new, weights)
    out.gone[group.path] = gone
    out.errors[group.path] = 0.0 if equal else _error(read, added, moments)


def representatives(rows: Tensor, within: float) -> list[int]:
    """For every row the first earlier one that it is a duplicate of, or itself.

    Rows of zeros are duplicates of each other. What others are merged into stays itself.
    """
    near = _near(rows, within)
    stands: list[int] = []
    for i in range(len(rows)):
        earlier = [j for j in near[i, :i].nonzero().flatten().tolist() if stands[j] == j]
        stands.append(earlier[0] if earlier else i)
    return stands


def _added(read: Tensor, stands_for: list[int], moments: Tensor | None) -> Tensor:
    """The reader's columns (out, units) after merging; 0 in the columns of those that are gone.

    With second moments C a unit j counts C_ij/C_ii of unit i: the multiple of it that is nearest.
    """
    added = torch.zeros_like(read)
    for j, i in enumerate(stands_for):
        factor = 1.0
        if moments is not None and i != j and float(moments[i, i]) > 0:
            factor = float(moments[i, j] / moments[i, i])
        added[:, i] += factor * read[:, j]
    return added


def _error(before: Tensor, after: Tensor, moments: Tensor | None) -> float | None:
    """√(E‖(V - V')a‖² / E‖V a‖²) for the columns V and the units' values a."""
    if moments is None:
        return None

    def mean_square(columns: Tensor) -> float:
        return float(torch.einsum("oi,ij,oj->", columns, moments, columns).clamp(min=0))

    whole = mean_square(before)
    return (mean_square(before - after) / whole) ** 0.5 if whole else 0.0


def _like(layout: Layout, name: str, rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    out = weights[name].clone()
    as_rows(layout, name, out).copy_(rows)
    return out


def mergeable_heads(
    group: Group, layout: Layout, weights: Mapping[str, Tensor]
) -> list[tuple[int, int]]:
    """Pairs of heads of one attention that can exactly become one, each head in at most one pair.

    They look at the same places, QᵢᵀKᵢ = QⱼᵀKⱼ (with the part of the biases that a softmax sees),
    and OᵢVᵢ + OⱼVⱼ has at most the rank of one head. Where positions are turned into queries and
    keys (LLaMA), or added head by head (T5), equal products are not enough: there Q and K
    themselves must be equal, and T5's self-attention is left alone (`Group.alike`).
    """
    attention = attention_of(group, layout, weights)
    if attention is None or not group.alike:
        return []
    same = _same_rows(attention) if group.alike == "rows" else _same_patterns(attention)
    found: list[tuple[int, int]] = []
    for i, j in same.triu(diagonal=1).nonzero().tolist():
        free = all(k not in pair for pair in found for k in (i, j))
        if free and _not_more(attention, i, j) and _joined(attention, i, j) is not None:
            found.append((i, j))
    return found


def _not_more(a: Attention, i: int, j: int) -> bool:
    """Whether the weights that two sparse heads hold are at least those of one that is full."""
    held = sum(int((part[[i, j]] != 0).sum()) for part in (a.value, a.output))
    return held >= a.value[i].numel() + a.output[i].numel()


def _same_rows(a: Attention) -> Tensor:
    parts = [a.query.flatten(1), a.key.flatten(1)]
    if a.biases is not None:
        parts += [a.biases[0].flatten(1), a.biases[1].flatten(1)]
    return _near(torch.cat(parts, dim=1), _EXACT)


def _same_patterns(a: Attention) -> Tensor:
    """By ‖[QᵢᵀKᵢ; q_bᵀKᵢ] - [QⱼᵀKⱼ; ...]‖: what else the biases add is the same for all places."""
    products = torch.einsum("hgdi,hdj->hgij", a.query, a.key)
    if a.biases is not None:
        beside = torch.einsum("hgd,hdj->hgj", a.biases[0], a.key)
        products = torch.cat([products, beside.unsqueeze(2)], dim=2)
    return _near(products.flatten(1), _EXACT)


def _near(rows: Tensor, within: float) -> Tensor:
    """Which rows are at most so far apart, as a part of the larger norm, (rows, rows)."""
    length = rows.norm(dim=1)
    # The distances of all pairs from inner products lose digits.
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return apart <= within * torch.maximum(length, length.unsqueeze(1))


def _joined(a: Attention, i: int, j: int) -> tuple[Tensor, Tensor] | None:
    """One head's output (queries, out, size) and value [V | b] for two; None where they do not fit.

    Several queries of one KV group share a value: their outputs are stacked.
    """
    values = a.value
    if a.biases is not None:
        values = torch.cat([values, a.biases[2].unsqueeze(2)], dim=2)
    stacked = a.output.flatten(1, 2)  # (heads, queries * out, size)
    u, s, v = torch.linalg.svd(stacked[i] @ values[i] + stacked[j] @ values[j], full_matrices=False)
    size = a.value.shape[1]
    if float(s[size:].norm()) > _EXACT * max(float(s.norm()), 1e-300):
        return None
    root = s[:size].sqrt()
    output, value = u[:, :size] * root, root.unsqueeze(1) * v[:size]
    missing = size - output.shape[1]
    output = torch.nn.functional.pad(output, (0, missing))
    value = torch.nn.functional.pad(value, (0, 0, 0, missing))
    return output.unflatten(0, a.output.shape[1:3]), value


def _merge_heads(out: Merged, group: Group, layout: Layout, weights: Mapping[str, Tensor]) -> None:
    pairs = mergeable_heads(group, layout, weights)
    attention = attention_of(group, layout, weights)
    if not pairs or attention is None:
        return
    producers, reader, size = producers_of(group), reader_of(group), attention.value.shape[1]
    value_part = producers[-1] if len(producers) == 3 else producers[0]
    new: dict[str, Tensor] = {
        part.tensor: as_rows(layout, part.tensor, weights[part.tensor]).double().clone()
        for part in (value_part, reader)
    }
    bias = bias_of(layout, value_part.tensor) if attention.biases is not None else None
    bias_new = None if bias is None else weights[bias].double().clone()
    for i, j in pairs:
        joined = _joined(attention, i, j)
        assert joined is not None  # else it would not be among the pairs
        output, value = joined
        rows = value_part.index[i][-size:]  # behind those of queries and keys, if made with them
        new[value_part.tensor][rows] = value[:, : attention.value.shape[2]]
        if bias_new is not None:
            bias_new[rows] = value[:, -1]
        new[reader.tensor][:, reader.index[i]] = output.transpose(0, 1).flatten(1)
        new[reader.tensor][:, reader.index[j]] = 0.0
    out.weights.update({n: _like(layout, n, rows, weights) for n, rows in new.items()})
    if bias is not None and bias_new is not None:
        out.weights[bias] = bias_new.to(weights[bias].dtype)
    out.gone[group.path] = tuple(sorted(j for _, j in pairs))
    out.errors[group.path] = 0.0
