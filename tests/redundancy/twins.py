"""Models of every family with duplicates put into them, and what their layers are fed with."""

import copy

import torch
from torch import Tensor, nn

from fedprune.redundancy.moments import Inputs, inputs_from
from fedprune.redundancy.unit_weights import bias_of, producers_of
from fedprune.scores.inputs import inputs_of, products, rows_of
from fedprune.structure.groups import Group
from fedprune.structure.layers import input_rows, layers_of, watching
from fedprune.structure.layout import Layout, as_rows
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Tensors, copied
from tests.families import family, forward


def built(name: str) -> tuple[nn.Module, Layout, Tensors]:
    model = copy.deepcopy(family(name).model)
    return model, family(name).layout, copied(state_of(model))


def said(name: str, model: nn.Module, weights: Tensors) -> Tensor:
    load_into(model, weights)
    with torch.no_grad():
        return forward(name, model)


def groups(layout: Layout, kind: str) -> list[Group]:
    return [g for g in layout.structure.groups if g.kind == kind]


def copy_unit(weights: Tensors, layout: Layout, group: Group, i: int, j: int) -> None:
    """Make unit j by the weights of unit i."""
    for part in producers_of(group):
        rows = as_rows(layout, part.tensor, weights[part.tensor])
        rows[part.index[j]] = rows[part.index[i]].clone()
        bias = bias_of(layout, part.tensor)
        if bias is not None:
            weights[bias][part.index[j]] = weights[bias][part.index[i]].clone()


def fed(name: str, model: nn.Module, layout: Layout, weights: Tensors) -> Inputs:
    """What goes into the layers, by hand: not through the statistic of the clients."""
    load_into(model, weights)
    seen: dict[str, list[Tensor]] = {n: [] for n in layout.prunable}

    def see(tensor: str, layer: nn.Module, x: Tensor, _y: Tensor) -> None:
        seen[tensor].append(input_rows(layer, x.detach()).flatten(0, 2))

    with watching(layers_of(model, layout.prunable), see), torch.no_grad():
        forward(name, model)
    sums: Tensors = {}
    for tensor, rows in seen.items():
        sums[inputs_of(tensor)] = products(torch.cat(rows))
        sums[rows_of(tensor)] = torch.tensor([float(len(torch.cat(rows)))])
    return inputs_from(sums, layout.prunable)
