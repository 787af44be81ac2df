"""Statistics of gradients: one function of a weight and a gradient, summed in four ways.

Over batches and in passing while a client tunes (`by_batch`, `watched`), over the whole shard at
once (`by_client`) or over single examples (`fedprune.scores.example_gradients`). What is linear in
the gradient is the same in all but the second of these, where the weights move from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.scores.gradient_blocks import Took, hand_gradients
from fedprune.scores.score import Probe, Watcher, Watching
from fedprune.structure.layers import parameters_of
from fedprune.structure.layout import Layout
from fedprune.tasks.task import Part
from fedprune.tensors.named import Tensors, wide, wide_zeros

Each = Callable[[Tensor, Tensor, int], Tensor]
"""From a weight, the gradient of a loss summed over labels, and their number, to the summand.

Elementwise: all of the weight's shape, or the gradient with further dimensions in front.
"""


def gradient(_w: Tensor, g: Tensor, _n: int) -> Tensor:
    """The gradient itself."""
    return g


def taylor(w: Tensor, g: Tensor, _n: int) -> Tensor:
    """w·g: minus the first-order change of the loss when w goes to 0."""
    return w * g


def square(_w: Tensor, g: Tensor, _n: int) -> Tensor:
    """g²: of one example."""
    return g.square()


def mean_square(_w: Tensor, g: Tensor, n: int) -> Tensor:
    """n·(g/n)²: the squared mean gradient of n labels, counted once for each."""
    return g.square() / max(1, n)


def taylor_second(w: Tensor, g: Tensor, _n: int) -> Tensor:
    """-w·g + ½w²g²: change of one example's loss when w goes, with g² for the curvature.

    Linear in what the examples sum (Σ g and Σ g²), so that one number a weight is sent, not two.
    """
    return 0.5 * (w * g).square() - w * g


@dataclass(frozen=True)
class SumOverBatches:
    """Σ over batches of `each`."""

    each: Each

    def __call__(self, probe: Probe) -> Tensors:
        """The sum, as `fedprune.scores.score.Statistic.collect`."""
        parameters = parameters_of(probe.model, probe.prunable)
        sums: Tensors = {}

        def took(name: str, g: Tensor, count: int) -> None:
            p = parameters[name]
            _sum_of(sums, name, p).add_(self.each(wide(p.detach()), wide(g), count))

        for batch in probe.batches:
            take_gradients(probe, parameters, batch, took)
        return {name: _sum_of(sums, name, p) for name, p in parameters.items()}


by_batch = SumOverBatches


def by_client(each: Each) -> Callable[[Probe], Tensors]:
    """`each` of the whole shard's gradient."""

    def collect(probe: Probe) -> Tensors:
        parameters = parameters_of(probe.model, probe.prunable)
        sums: Tensors = {}

        def took(name: str, g: Tensor, _count: int) -> None:
            _sum_of(sums, name, parameters[name]).add_(g)

        labels = sum(take_gradients(probe, parameters, batch, took) for batch in probe.batches)
        return {
            n: each(wide(p.detach()), _sum_of(sums, n, p), labels) for n, p in parameters.items()
        }

    return collect


def _sum_of(sums: Tensors, name: str, parameter: Tensor) -> Tensor:
    """The sum of a name; zeros, made when it is first asked for: the gradients go meanwhile."""
    if name not in sums:
        sums |= wide_zeros({name: parameter})
    return sums[name]


def take_gradients(
    probe: Probe, parameters: Mapping[str, nn.Parameter], batch: Part, took: Took
) -> int:
    """Hand on the gradient of a batch's summed loss, weight by weight; the labels it is over.

    A tensor that the loss does not reach has none. Nothing is left in the parameters' `grad`.
    """
    if probe.by_block:
        return hand_gradients(probe.model, parameters, lambda: probe.loss(probe.model, batch), took)
    loss = probe.loss(probe.model, batch)
    found = torch.autograd.grad(loss.total, list(parameters.values()), allow_unused=True)
    left = dict(zip(parameters, found, strict=True))
    del found
    while left:  # each is let go of when it is taken: of a large model they are as much as it is
        name, g = left.popitem()
        if g is not None:
            took(name, g, loss.count)
    return loss.count


@contextmanager
def watched_mean_square(
    model: nn.Module, _layout: Layout, names: Sequence[str]
) -> Iterator[Watcher]:
    """`mean_square` of all steps together: their gradients are added up before they are squared.

    As in PruneFL's code (Jiang et al. 2022, arXiv 1909.12326), to the factor that the number of
    steps is.
    """
    parameters, labels = parameters_of(model, names), 0
    sums = wide_zeros(parameters)

    def add(count: int) -> None:
        nonlocal labels
        labels += count
        for name, p in parameters.items():
            if p.grad is not None:
                sums[name] += p.grad * count

    yield Watcher(sums, add)
    for total in sums.values():
        total.square_().div_(max(1, labels))


def watched(each: Each) -> Watching:
    """The sums of `each` over steps, at the weights of each step."""

    @contextmanager
    def watch(model: nn.Module, _layout: Layout, names: Sequence[str]) -> Iterator[Watcher]:
        parameters = parameters_of(model, names)
        sums = wide_zeros(parameters)

        def add(count: int) -> None:
            for name, p in parameters.items():
                if p.grad is not None:
                    sums[name] += each(p.detach(), p.grad * count, count)

        yield Watcher(sums, add)

    return watch
