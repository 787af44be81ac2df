"""Gradients of single examples, in one backward pass for a whole batch.

The gradient of example b in a layer's weight is Σ over rows of its output gradient times its
input (Goodfellow 2015, arXiv 1510.01799). Both are recorded by hooks; a layer that is used several
times, or shares its weight with another, adds its uses up before anything is squared. Whether that
is the gradient is checked against one example on its own for every size of batch: where it is not
(weights used without their layer, batches in another dimension), examples go through one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedprune.scores.gradients import Each
from fedprune.scores.score import Probe
from fedprune.structure.layers import (
    groups,
    input_rows,
    layers_of,
    output_rows,
    parameters_of,
    watching,
)
from fedprune.structure.layout import Layout, from_rows
from fedprune.tasks.task import Part, batches, examples
from fedprune.tensors import Tensors

AT_ONCE = 2**24
"""How many numbers the gradients of some examples may be that are held at once."""

Use = tuple[nn.Module, Tensor, Tensor]
"""A layer, its input and its output (or the gradient of that)."""


def by_example(each: Each) -> Callable[[Probe], Tensors]:
    """Σ over examples of `each`; an example is one row of the batch."""

    def collect(probe: Probe) -> Tensors:
        parameters = parameters_of(probe.model, probe.prunable)
        weights = {name: p.detach() for name, p in parameters.items()}
        sums = {name: torch.zeros_like(w) for name, w in weights.items()}
        slow: dict[int, set[str]] = {}  # by size of batch, the tensors that hooks get wrong
        for batch in probe.batches:
            size = examples(batch)
            uses = _uses(probe, batch)
            if size not in slow:
                slow[size] = _wrong(probe, batch, uses)
            for name in weights.keys() - slow[size]:
                _add(sums[name], uses[name], weights[name], each, (probe.layout, name))
            _add_one_by_one(sums, sorted(slow[size]), probe, batch, each)
        return sums

    return collect


def _uses(probe: Probe, batch: Part) -> dict[str, list[Use]]:
    """Every use of every weight in one batch: the layer, its input, its output's gradient."""
    made: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def seen(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if y.requires_grad:
            made.append((name, layer, x.detach(), y))

    with watching(layers_of(probe.model, probe.prunable), seen):
        total = probe.loss(probe.model, batch).total
    uses: dict[str, list[Use]] = {name: [] for name in probe.prunable}
    if made:
        slopes = torch.autograd.grad(total, [y for *_, y in made], allow_unused=True)
        for (name, layer, x, _), slope in zip(made, slopes, strict=True):
            if slope is not None:
                uses[name].append((layer, x, slope))
    return uses


def _wrong(probe: Probe, batch: Part, uses: dict[str, list[Use]]) -> set[str]:
    """The tensors for which the first example's gradient is not what the hooks say."""
    size = examples(batch)
    alone = _alone(probe, next(batches(batch, 1)), list(uses))
    wrong = set()
    for name, used in uses.items():
        g = alone[name]
        if any(x.shape[0] != size or slope.shape[0] != size for _, x, slope in used):
            wrong.add(name)
        elif used:
            g = g - _of_uses(used, slice(0, 1), (probe.layout, name))
        if g.abs().max() > 1e-3 * alone[name].abs().max():
            wrong.add(name)
    return wrong


def _alone(probe: Probe, example: Part, names: Sequence[str]) -> Tensors:
    """The gradient of one example by autograd, 0 where the loss does not reach."""
    parameters = parameters_of(probe.model, names)
    total = probe.loss(probe.model, example).total
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs}


def _add(
    total: Tensor, uses: list[Use], weight: Tensor, each: Each, where: tuple[Layout, str]
) -> None:
    if not uses:
        return
    some = max(1, AT_ONCE // weight.numel())
    for start in range(0, uses[0][1].shape[0], some):
        g = _of_uses(uses, slice(start, start + some), where)
        total += each(weight, g, 1).sum(0)


def _of_uses(uses: list[Use], chosen: slice, where: tuple[Layout, str]) -> Tensor:
    """Gradients of the chosen examples, (examples, *shape of the weight)."""
    layout, name = where
    rows = functools.reduce(torch.add, (_of_use(use, chosen) for use in uses))
    shaped: Tensor = torch.vmap(lambda g: from_rows(layout, name, g))(rows)
    return shaped


def _of_use(use: Use, chosen: slice) -> Tensor:
    """Gradients of the chosen examples from one use, (examples, out, columns)."""
    layer, x, slope = use
    inputs = input_rows(layer, x[chosen]).permute(0, 2, 1, 3)
    slopes = output_rows(layer, slope[chosen]).unflatten(-1, (groups(layer), -1))
    gradients: Tensor = (slopes.permute(0, 2, 3, 1) @ inputs).flatten(1, 2)
    return gradients


def _add_one_by_one(
    sums: Tensors, names: Sequence[str], probe: Probe, batch: Part, each: Each
) -> None:
    if not names:
        return
    weights = parameters_of(probe.model, names)
    for example in batches(batch, 1):
        for name, g in _alone(probe, example, names).items():
            sums[name] += each(weights[name].detach(), g, 1)
