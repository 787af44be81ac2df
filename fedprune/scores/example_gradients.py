"""Gradients of single examples, and their sum with every one of them held to a norm.

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

from fedprune.structure.layers import parameters_of
from fedprune.tasks.task import Loss, Part, batches, examples
from fedprune.tensors import Tensors

AT_ONCE = 2**22
"""How many numbers the gradients of some examples may be that are held at once."""


class Some(NamedTuple):
    """Some examples of a batch.

    Attributes:
        gradients: of each one's summed loss, (examples, *shape of the parameter), by name.
        rows: the examples themselves.
        loss: summed over them.
        labels: how many it is summed over.
    """

    gradients: Tensors
    rows: Part
    loss: float
    labels: int


@dataclass
class ExampleGradients:
    """Takes gradients of single examples of a model in eval mode, which stays as it is.

    Attributes:
        model: holds the weights.
        loss: sums over a batch, to which every example adds what it would by itself.
        names: the parameters asked about.
        at_once: whether batches of a size can be taken at once, by size, as far as is known.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Part], Loss]
    names: Sequence[str]
    at_once: dict[int, bool] = field(default_factory=dict)

    def of(self, batch: Part) -> Iterator[Some]:
        """The gradients of all examples of a batch, so many at a time that they fit in memory."""
        size = sum(p.numel() for p in parameters_of(self.model, self.names).values())
        for part in batches(batch, max(1, AT_ONCE // max(1, size))):
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

    hook = model.register_forward_hook(seen, with_kwargs=True)
    try:
        result = loss(model, part)
    finally:
        hook.remove()
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
    """What the model gives that can be differentiated."""
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


def bounded_sum(rows: Tensor, norm: float, *, exactly: bool = False) -> Tensor:
    """The sum of rows (examples, values), each held to an L2 norm; (values,) float64.

    Adding or removing a row moves it by `norm` at most. A row that is not finite counts as 0.0:
    to refuse it would tell that it is there.

    Args:
        rows: of a floating-point type.
        norm: the largest norm of a row.
        exactly: rows are also scaled up to it; zeros stay zeros.
    """
    if not rows.numel():
        return rows.double().sum(0)
    if rows.dtype == torch.float64:
        return _careful(rows, norm, exactly=exactly)
    # Squares of narrower types neither overflow nor vanish in float64.
    sizes = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    fine = torch.isfinite(sizes)
    if not fine.all():
        rows = torch.where(fine[:, None], rows, 0.0)
    full = torch.where(fine & (sizes > 0), norm / sizes, 0.0)
    return (full if exactly else torch.where(sizes > norm, full, 1.0)) @ rows.double()


def _careful(rows: Tensor, norm: float, *, exactly: bool) -> Tensor:
    """The same where a double may not hold the squares: the largest is taken out first."""
    largest = rows.abs().amax(1)
    fine = torch.isfinite(largest) & (largest > 0)
    directions = torch.where(fine[:, None], rows / largest[:, None], 0.0)
    sizes = torch.linalg.vector_norm(directions, dim=1).clamp_min(1.0)
    full = norm / sizes
    factors = full if exactly else torch.minimum(full, torch.where(fine, largest, 0.0))
    return factors @ directions
