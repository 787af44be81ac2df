"""Units and layers that say the same: cosine similarity of weights and of what comes out.

Of activations only second moments are looked at (`fedprune.redundancy.moments`): what is said of
them holds for all inputs of all clients that answered, and for no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.redundancy.moments import Inputs
from fedprune.redundancy.unit_weights import Attention, attention_of, incoming, outgoing, reader_of
from fedprune.structure.groups import Group
from fedprune.structure.layout import Layout, as_rows
from fedprune.structure.low_rank_layers import root_of


@dataclass(frozen=True)
class Pair:
    """Two of a kind.

    `path` is of the group they are in; of layers it is the first one's, `other` the second's, and
    there are no numbers. `by` is "weights" or "activations".
    """

    kind: str
    path: str
    left: int
    right: int
    by: str
    cosine: float
    other: str = ""


def similar_units(
    layout: Layout, weights: Mapping[str, Tensor], inputs: Inputs | None, least: float
) -> list[Pair]:
    """Pairs of heads or neurons of one group that are at least so similar, the most similar first.

    Neurons are compared by everything that makes them (rows and biases of every producer), heads
    by their query-key and value-output products, which do not depend on how a head is turned
    inside. By activations: a neuron by its value, a head by what it adds to the output.
    """
    found: list[Pair] = []
    for group in layout.structure.groups:
        for by, products in _products(group, layout, weights, inputs):
            found += _pairs(group.kind, group.path, by, cosines(products), least)
    return sorted(found, key=lambda pair: -abs(pair.cosine))


def _products(
    group: Group, layout: Layout, weights: Mapping[str, Tensor], inputs: Inputs | None
) -> Iterator[tuple[str, Tensor]]:
    """Inner products of all pairs of units, (units, units), by weights and by activations."""
    if group.kind == "neuron":
        rows = incoming(group, layout, weights)
        yield "weights", rows @ rows.t()
    elif (attention := attention_of(group, layout, weights)) is not None:
        yield "weights", _of_heads(attention)
    reader = reader_of(group)
    if inputs is not None and reader.tensor in inputs.products:
        moments = inputs.products[reader.tensor]
        if group.kind == "neuron":
            yield "activations", moments[reader.index[:, 0]][:, reader.index[:, 0]]
        elif group.kind == "head":
            yield "activations", _of_contributions(group, layout, weights, moments)


def _of_heads(a: Attention) -> Tensor:
    """Inner products of heads as the pair (QᵀK, OV), each of the two scaled to length 1 first.

    <QᵢᵀKᵢ, QⱼᵀKⱼ> = Σ (Qᵢ Qⱼᵀ)∘(Kᵢ Kⱼᵀ): nothing as large as (in, in) is made.
    """
    query = torch.einsum("hgdi,kgei->hkgde", a.query, a.query)
    pattern = torch.einsum("hkgde,hdi,kei->hk", query, a.key, a.key)
    output = torch.einsum("hgod,kgoe->hkgde", a.output, a.output)
    content = torch.einsum("hkgde,hdi,kei->hk", output, a.value, a.value)
    return cosines(pattern) + cosines(content)


def _of_contributions(
    group: Group, layout: Layout, weights: Mapping[str, Tensor], moments: Tensor
) -> Tensor:
    """E <y_i, y_j> of what heads add to the output: tr(O_i C_ij O_jᵀ), up to the number of rows."""
    read, index = outgoing(group, layout, weights), reader_of(group).index
    blocks = moments[index][:, :, index].permute(0, 2, 1, 3)  # (units, units, width, width)
    return torch.einsum("hod,hkde,koe->hk", read, blocks, read)


def cosines(products: Tensor) -> Tensor:
    """From inner products (n, n) to cosines; 0 with what is 0."""
    length = products.diagonal().clamp(min=0).sqrt()
    scale = torch.where(length > 0, 1 / length, torch.zeros_like(length))
    return (products * scale * scale.unsqueeze(1)).clamp(-1.0, 1.0)


def _pairs(kind: str, path: str, by: str, cosine: Tensor, least: float) -> list[Pair]:
    upper = cosine.triu(diagonal=1).abs() >= max(least, 1e-12)
    return [Pair(kind, path, i, j, by, float(cosine[i, j])) for i, j in upper.nonzero().tolist()]


def similar_layers(
    layout: Layout, weights: Mapping[str, Tensor], inputs: Inputs | None, least: float
) -> list[Pair]:
    """Pairs of matrices of one shape that are at least so similar, the most similar first.

    By activations: the cosine of the second moments W Σ Wᵀ of their outputs, which says that they
    use the same directions, not that they say the same.
    """
    seen: dict[tuple[int, ...], list[str]] = {}
    for name in layout.prunable:
        seen.setdefault((*layout.shapes[name],), []).append(name)
    found: list[Pair] = []
    for names in seen.values():
        whole = [as_rows(layout, n, weights[n]).double() for n in names]
        flat = torch.stack([w.flatten() for w in whole])
        found += _layer_pairs(names, "weights", flat @ flat.t(), least)
        if inputs is not None and all(n in inputs.products for n in names):
            seen_as = [w @ root_of(inputs.moments(n)) for n, w in zip(names, whole, strict=True)]
            found += _layer_pairs(names, "activations", _of_second_moments(seen_as), least)
    return sorted(found, key=lambda pair: -abs(pair.cosine))


def _of_second_moments(roots: list[Tensor]) -> Tensor:
    """<A Aᵀ, B Bᵀ> = ‖Aᵀ B‖² of all pairs: nothing as large as (out, out) is made."""
    return torch.stack([torch.stack([(a.t() @ b).square().sum() for b in roots]) for a in roots])


def _layer_pairs(names: list[str], by: str, products: Tensor, least: float) -> list[Pair]:
    pairs = _pairs("layer", "", by, cosines(products), least)
    return [Pair("layer", names[p.left], 0, 0, by, p.cosine, other=names[p.right]) for p in pairs]


def equal_matrices(
    layout: Layout, weights: Mapping[str, Tensor], within: float = 0.0
) -> list[tuple[str, str, float]]:
    """Matrices that can be shared: (name, the earlier one it equals, relative distance).

    Of one shape, kind and tie; ‖W - V‖_F is at most `within` of the larger norm. Every name comes
    once, and what stays is not shared with anything itself. A matrix of zeros equals no other.
    """
    found: list[tuple[str, str, float]] = []
    stays: dict[tuple[object, ...], list[str]] = {}
    for name in layout.prunable:
        kind = (layout.kinds.get(name), *layout.shapes[name])
        for other in stays.setdefault(kind, []):
            apart = distance(weights[name], weights[other])
            if apart <= within:
                found.append((name, other, apart))
                break
        else:
            stays[kind].append(name)
    return found


def distance(left: Tensor, right: Tensor) -> float:
    """‖left - right‖ as a part of the larger norm; infinite where both are 0."""
    most = max(float(left.double().norm()), float(right.double().norm()))
    if not most:
        return float("inf")
    return float((left.double() - right.double()).norm()) / most
