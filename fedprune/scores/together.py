"""Statistics of several clients at once: all of them are taken at the same weights.

What is linear in the gradient: a stack of the weights, the same for every client, gets each
client's gradient from one backward pass. What is summed of the layers' inputs: one forward pass of
all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from fedprune.scores.example_gradients import SumOverExamples
from fedprune.scores.gradients import SumOverBatches, gradient, taylor
from fedprune.scores.inputs import SumOverInputs, add_rows, inputs_of, no_sums
from fedprune.scores.score import Probe, Statistic
from fedprune.structure.layers import input_rows, layers_of, parameters_of, watching
from fedprune.structure.stacked import Stacked
from fedprune.tasks.task import Part, examples
from fedprune.tasks.together import join_parts, losses_of
from fedprune.tensors.named import Tensors, wide, wide_zeros

LINEAR = (gradient, taylor)
"""Functions of a gradient that depend neither on how a shard is cut nor on the labels in it."""


def collect_together(ask: Statistic, probes: Sequence[Probe]) -> list[Tensors] | None:
    """What each client sums for an ask, to rounding; None where this ask goes one by one.

    Raises:
        RuntimeError: the model does what vmap cannot follow.
        ValueError: what it gives, or what goes into a layer, does not have the rows first.
    """
    collect = ask.collect
    if isinstance(collect, SumOverExamples):
        collect = collect.collect
    if isinstance(collect, SumOverBatches) and collect.each in LINEAR:
        return _gradients(collect, probes)
    return _inputs(collect, probes) if isinstance(collect, SumOverInputs) else None


def _side_by_side(probes: Sequence[Probe]) -> Iterator[dict[int, Part]]:
    """The first batches of all clients, then the second ones, by client."""
    for parts in zip_longest(*(probe.batches for probe in probes)):
        yield {i: part for i, part in enumerate(parts) if part is not None}


def _gradients(collect: SumOverBatches, probes: Sequence[Probe]) -> list[Tensors]:
    probe = probes[0]
    weights = parameters_of(probe.model, probe.prunable)
    found = [wide_zeros(weights) for _ in probes]
    for parts in _side_by_side(probes):
        leaves = {
            n: p.detach().expand(len(parts), *p.shape).requires_grad_() for n, p in weights.items()
        }
        joined = join_parts(list(parts.values()))
        losses = losses_of(Stacked(probe.model, leaves), probe.loss, joined)
        given = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        for name, of_all in zip(leaves, given, strict=True):
            for i, g in zip(parts, () if of_all is None else of_all, strict=of_all is not None):
                found[i][name] += collect.each(wide(weights[name].detach()), wide(g), 1)
    return found


@torch.no_grad()
def _inputs(collect: SumOverInputs, probes: Sequence[Probe]) -> list[Tensors]:
    probe = probes[0]
    shapes = collect.shapes(probe.layout, probe.prunable, probe.unit, probe.probes)
    found = [no_sums(probe.model, shapes) for _ in probes]
    there = dict[int, Part]()

    def seen(name: str, layer: nn.Module, x: Tensor, _y: Tensor) -> None:
        sizes = [examples(part) for part in there.values()]
        if len(x) != sum(sizes):
            raise ValueError(f"{name}: its input does not have the rows first")
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = input_rows(layer, x.detach().to(wide)).split(sizes)
        for i, own in zip(there, rows, strict=True):
            add_rows(found[i], name, own, collect.each)

    summed = [name for name in probe.prunable if inputs_of(name) in shapes]
    with watching(layers_of(probe.model, summed), seen):
        for there in _side_by_side(probes):  # `seen` looks at it
            names = next(iter(there.values()))
            probe.loss(probe.model, {n: torch.cat([p[n] for p in there.values()]) for n in names})
    return found
