"""Gradients of single examples, and statistics of them.

`torch.func` takes the gradients of a batch at once: the loss is differentiated with respect to
what the model gives, and the rest of the way down each example goes by itself under `vmap`. That
needs a model that is called once, with one row for each example, and that `vmap` can follow (BERT's
and T5's masks look at their values, which it cannot). Any other model goes through autograd example
by example: the same numbers, more slowly. Which it is, is found by comparing the first example's
gradient with autograd's, for every size of batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from fedprune.scores.gradients import Each, take_gradients
from fedprune.scores.score import Probe
from fedprune.structure.layers import parameters_of
from fedprune.tasks.task import Loss, Part, batches, examples
from fedprune.tensors.named import Tensors, wide, wide_zeros

_AT_ONCE = 2**22  # How many numbers the gradients of some examples may be that are held at once


@dataclass(frozen=True)
class SumOverExamples:
    """A statistic that is Σ over examples of a function of a weight and an example's gradient."""

    each: Each  # that function; an example is one row of a batch
    collect: Callable[[Probe], Tensors]  # how the sum is taken where single examples do not matter

    def __call__(self, probe: Probe) -> Tensors:
        """The sum over the probe's batches, as `fedprune.scores.score.Statistic.collect`."""
        return self.collect(probe)


def by_example(each: Each) -> SumOverExamples:
    """Σ over examples of `each`, from their own gradients: for what is not linear in them."""

    def collect(probe: Probe) -> Tensors:
        parameters = parameters_of(probe.model, probe.prunable)
        sums = wide_zeros(parameters)
        if probe.by_block:
            _one_by_one(each, probe, sums)
            return sums
        for rows in of_examples(each, probe):
            for name, row in rows.items():
                sums[name] += row.sum(0)
        return sums

    return SumOverExamples(each, collect)


def _one_by_one(each: Each, probe: Probe, sums: Tensors) -> None:
    """Add `each` of every example by itself, whose gradients are there a block at a time."""
    parameters = parameters_of(probe.model, probe.prunable)

    def took(name: str, g: Tensor, _count: int) -> None:
        sums[name] += each(wide(parameters[name].detach()), wide(g), 1)

    for batch in probe.batches:
        for example in batches(batch, 1):
            take_gradients(probe, parameters, example, took)


def of_examples(each: Each, probe: Probe) -> Iterator[Tensors]:
    """`each` of single examples, some at a time: (examples, *shape of the weight), by name."""
    taken = ExampleGradients(probe.model, probe.loss, tuple(probe.prunable))
    weights = parameters_of(probe.model, probe.prunable)
    for batch in probe.batches:
        for some in taken.of(batch):
            yield {
                n: each(wide(weights[n].detach()), wide(g), 1) for n, g in some.gradients.items()
            }


class Some(NamedTuple):
    """Some examples of a batch."""

    gradients: Tensors  # of each one's summed loss, (examples, *shape of the parameter), by name
    rows: Part  # the examples themselves
    loss: float  # summed over them
    labels: int  # how many it is summed over


@dataclass
class ExampleGradients:
    """Takes gradients of single examples of a model in eval mode, which stays as it is."""

    model: nn.Module  # holds the weights
    # sums over a batch, to which every example adds what it would by itself
    loss: Callable[[nn.Module, Part], Loss]
    names: Sequence[str]  # the parameters asked about
    # whether batches of a size can be taken at once, by size, as far as is known
    at_once: dict[int, bool] = field(default_factory=dict)

    def of(self, batch: Part) -> Iterator[Some]:
        """The gradients of all examples of a batch, so many at a time that they fit in memory."""
        size = sum(p.numel() for p in parameters_of(self.model, self.names).values())
        for part in batches(batch, max(1, _AT_ONCE // max(1, size))):
            found = self._together(part)
            if found is not None:
                yield found
            else:
                yield from map(self.alone, batches(part, 1))

    def alone(self, example: Part) -> Some:
        """A single example by autograd; 0 where its loss does not reach."""
        parameters = parameters_of(self.model, self.names)
        loss = self.loss(self.model, example)
        found = torch.autograd.grad(loss.total, list(parameters.values()), allow_unused=True)
        pairs = zip(parameters.items(), found, strict=True)
        gradients = {n: (torch.zeros_like(p) if g is None else g)[None] for (n, p), g in pairs}
        return Some(gradients, example, loss.total.item(), loss.count)

    def _together(self, part: Part) -> Some | None:
        size = examples(part)
        if not self.at_once.get(size, size > 1):
            return None
        found = _vectorised(self.model, self.loss, part, self.names)
        if size not in self.at_once:
            self.at_once[size] = found is not None and self._right(found)
        return found if self.at_once[size] else None

    def _right(self, found: Some) -> bool:
        """Whether the first example's gradient is what autograd says."""
        alone = self.alone(next(batches(found.rows, 1))).gradients
        return all(
            bool((found.gradients[n][:1] - g).abs().max() <= 1e-3 * g.abs().max())
            for n, g in alone.items()
        )


class _Call(NamedTuple):
    """A call of the model: its tensors going in, coming out, and how to make it again."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    again: Callable[[Tensors, Sequence[Tensor]], list[Tensor]]


def _vectorised(
    model: nn.Module, loss: Callable[[nn.Module, Part], Loss], part: Part, names: Sequence[str]
) -> Some | None:
    """The gradients of a batch at once; None where that is not possible."""
    calls: list[_Call] = []

    def seen(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(_call_of(model, args, kwargs, output))

    with model.register_forward_hook(seen, with_kwargs=True):
        result = loss(model, part)
    size = examples(part)
    if len(calls) != 1 or any(x.shape[:1] != (size,) for x in calls[0].inputs):
        return None
    slopes = torch.autograd.grad(result.total, calls[0].outputs, allow_unused=True)
    reached = [i for i, slope in enumerate(slopes) if slope is not None]
    given = [slope for slope in slopes if slope is not None]
    if not given or any(slope.shape[:1] != (size,) for slope in given):
        return None
    weights = {n: p.detach() for n, p in parameters_of(model, names).items()}
    try:
        gradients = _down(calls[0], weights, reached, given)
    except RuntimeError:  # the model does what vmap cannot follow
        return None
    return Some(gradients, part, result.total.item(), result.count)


def _call_of(model: nn.Module, args: Any, kwargs: Any, output: Any) -> _Call:
    leaves, shape = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def again(weights: Tensors, inputs: Sequence[Tensor]) -> list[Tensor]:
        filled = list(leaves)
        for place, x in zip(places, inputs, strict=True):
            filled[place] = x
        return _tensors(functional_call(model, weights, *tree_unflatten(filled, shape)))

    return _Call([leaves[i] for i in places], _tensors(output), again)


def _tensors(output: Any) -> list[Tensor]:
    leaves = tree_flatten(output)[0]
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _down(
    call: _Call, weights: Tensors, reached: Sequence[int], slopes: Sequence[Tensor]
) -> Tensors:
    """From slopes of the outputs (examples, ...) to those of the weights, one example at a time."""

    def one(inputs: Sequence[Tensor], given: Sequence[Tensor]) -> Tensors:
        def forward(w: Tensors) -> tuple[Tensor, ...]:
            outputs = call.again(w, [x[None] for x in inputs])
            return tuple(outputs[i] for i in reached)

        back = vjp(forward, weights)[1]
        found: Tensors = back(tuple(slope[None] for slope in given))[0]
        return found

    with warnings.catch_warnings():
        # Some operations go through the batch one by one, which costs time and is no news.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        gradients: Tensors = vmap(one)(list(call.inputs), list(slopes))
    return {n: g.detach() for n, g in gradients.items()}
