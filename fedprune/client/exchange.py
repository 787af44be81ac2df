"""A client that exchanges weights as it tunes: the smallest go, others grow, and it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fedprune.client.context import ClientContext
from fedprune.client.probing import client_probe
from fedprune.learning.local_training import Tuned
from fedprune.protocol.messages import Question
from fedprune.randomness import generator
from fedprune.scores.gradient_statistics import summed_gradient
from fedprune.selection.regrowth import exchange_weights, redistributed
from fedprune.tasks.task import Part
from fedprune.tensors.hooks import removed_after
from fedprune.tensors.models import found_in, load_into, state_of
from fedprune.tensors.named import Masks, masked, on_cpu

Training = Callable[[Masks, Sequence[list[Part]]], Tuned]
"""Trains the client's model under masks on steps."""


def exchanging(
    question: Question, client: ClientContext, steps: Sequence[list[Part]], train: Training
) -> tuple[Masks, Tuned]:
    """The mask that a client ends with, and what its training summed.

    It takes a part of its steps, exchanges weights, and takes the others under the new mask: its
    optimizer begins anew, what grew begins at 0.
    """
    first = round(question.turn * len(steps))
    before = train(question.masks, steps[:first])
    masks = own_exchange(question, client)
    load_into(client.model, masked(on_cpu(state_of(client.model)), masks))
    after = train(masks, steps[first:])
    parts = [x.divergence for x in (before, after) if x.divergence is not None]
    loss, count = before.loss + after.loss, before.count + after.count
    return masks, Tuned(loss, count, divergence=sum(parts) if parts else None)


def own_exchange(question: Question, client: ClientContext) -> Masks:
    """The mask after the client's exchange at its weights as they are now."""
    masks, weights = question.masks, on_cpu(state_of(client.model))
    sizes = {n: weights[n].abs() for n in masks}
    floor = client.config.floor
    if question.grow == "random":
        gen = generator(client.config.seed, "growth", question.round, client.partition)
        return redistributed(masks, sizes, question.exchange, gen, floor=floor)
    client.model.eval()
    gradient = summed_gradient(client_probe(question, client, client.layout.prunable, {}))
    grown = {n: g.abs().cpu() for n, g in gradient.items()}
    part = question.exchange
    return exchange_weights(masks, sizes, grown, part, scope="layer", magnitude=sizes, floor=floor)


@contextmanager
def extruding(question: Question, client: ClientContext) -> Iterator[None]:
    """Within the block what is about to go costs its squares: gradients have 2·weight·w more.

    The lowest part of each tensor's kept weights, as the model is when the block begins.
    """
    named, hooks = found_in(client.model).parameters, []
    for name, mask in question.masks.items() if question.extrude else ():
        p = named[name]
        kept = mask.to(p.device)
        few = math.floor(question.exchange * int(kept.sum()) + 0.5)
        sizes = torch.where(kept, p.detach().abs(), torch.inf).flatten()
        low = torch.zeros_like(sizes).index_fill(0, sizes.argsort(stable=True)[:few], 1.0)
        press = 2.0 * question.extrude * low.reshape(p.shape)
        hooks.append(p.register_hook(partial(_pressed, p, press)))
    with removed_after(hooks):
        yield


def _pressed(p: Tensor, press: Tensor, gradient: Tensor) -> Tensor:
    return gradient + press * p.detach()
