"""Losses of several clients' batches, from one call of a model with the weights of all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fedprune.structure.stacked import Stacked
from fedprune.tasks.task import Loss, Part, examples

Lossy = Callable[[Any, Part], Loss]
"""A task's loss: of what is called like a model, and a batch."""


@dataclass(frozen=True)
class Joined:
    """Batches of several clients, one after the other.

    Attributes:
        rows: of all of them, each batch filled up to the longest with its own last row.
        sizes: how many rows each has.
    """

    rows: Part
    sizes: tuple[int, ...]

    @property
    def most(self) -> int:
        """How many rows the longest has."""
        return max(self.sizes)

    @property
    def ragged(self) -> bool:
        """Whether some are filled up."""
        return min(self.sizes) < self.most

    def parts(self) -> list[Part]:
        """The batches, without what fills them up."""
        most = self.most
        cuts = [slice(i * most, i * most + size) for i, size in enumerate(self.sizes)]
        return [{name: t[cut] for name, t in self.rows.items()} for cut in cuts]

    def real(self, device: torch.device) -> Tensor:
        """Which rows are the clients', (clients, most)."""
        real = torch.arange(self.most) < torch.tensor(self.sizes).unsqueeze(1)
        return real.to(device)


def join_batches(data: Part, chosen: Sequence[Tensor]) -> Joined:
    """Batches of rows of some data, which are told by their places, one tensor a batch."""
    sizes = tuple(map(len, chosen))
    most = max(sizes)
    filled = [
        rows if size == most else torch.cat([rows, rows[-1:].expand(most - size)])
        for rows, size in zip(chosen, sizes, strict=True)
    ]
    places = torch.cat(filled).to(next(iter(data.values())).device)
    return Joined({name: t.index_select(0, places) for name, t in data.items()}, sizes)


def join_parts(parts: Sequence[Part]) -> Joined:
    """Batches that are there already."""
    data = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    sizes = [examples(part) for part in parts]
    begins = itertools.accumulate(sizes, initial=0)
    return join_batches(
        data, [torch.arange(b, b + size) for b, size in zip(begins, sizes, strict=False)]
    )


def losses_of(stack: Stacked, loss: Lossy, batches: Joined) -> Tensor:
    """The loss of each client's batch, summed over its labels, (clients,), with gradient.

    Raises:
        ValueError: the loss calls parts of the model by themselves, or not the model.
    """
    found, every = answered_at_once(stack, loss, batches), len(batches.sizes) * batches.most
    if found.each is None or not found.each.requires_grad or found.each.shape != (every,):
        return torch.stack([loss(again, part).total for again, part in replays(stack, batches)])
    each = found.each.view(-1, batches.most)
    if batches.ragged:
        each = torch.where(batches.real(each.device), each, 0.0)
    return each.sum(1)


def answered_at_once(stack: Stacked, loss: Lossy, batches: Joined) -> Loss:
    """Call the model for the clients' batches, for `replays` to give again; all rows' loss."""
    stack.rows, stack.ragged = batches.most, batches.ragged
    stack.outputs.clear()
    found = loss(stack, batches.rows)
    if not stack.outputs:
        raise ValueError("the loss does not call the model itself")
    return found


@dataclass
class Replay:
    """Called like the model, it gives what the model gave of one client's rows.

    `rows` are the client's, of a stack that was called before.
    """

    stack: Stacked
    rows: slice
    calls: int = 0

    def __getattr__(self, name: str) -> Any:
        """What the model says of itself."""
        return getattr(self.stack, name)

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """The next of the outputs."""
        self.calls += 1
        output = self.stack.outputs[self.calls - 1]
        return tree_map(lambda x: x[self.rows] if isinstance(x, Tensor) else x, output)


def replays(stack: Stacked, batches: Joined) -> list[tuple[Any, Part]]:
    """For each client what stands for its model, and its batch."""
    begins = range(0, len(batches.sizes) * batches.most, batches.most)
    cuts = [slice(b, b + size) for b, size in zip(begins, batches.sizes, strict=True)]
    return [(Replay(stack, cut), p) for cut, p in zip(cuts, batches.parts(), strict=True)]
