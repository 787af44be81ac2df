"""What a client's statistics are taken from: its model, its examples, what it remembers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedprune.client.context import Batches, ClientContext
from fedprune.client.memory import keeps, memory_of
from fedprune.protocol.choice import evidence_about
from fedprune.protocol.form import fitting
from fedprune.protocol.messages import Question
from fedprune.randomness import derive, generator
from fedprune.scores.score import Evidence, Probe
from fedprune.tasks.task import Part, batches, examples
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, Tensors, masked, on_cpu


def client_probe(
    question: Question, client: ClientContext, names: tuple[str, ...], given: Tensors
) -> Probe:
    """What a client takes a statistic from, of the tensors named."""
    c, own = client.config, client.memory
    kept: dict[str, Any] = {}
    if question.kind == "score" and memory_of(question, c):
        before = own.recall(REMEMBERED)
        kept["remembered"] = {n: t.to(client.device, copy=True) for n, t in before.items()}
        kept |= {"remember": functools.partial(own.keep, REMEMBERED)} if keeps(question, c) else {}
    return Probe(
        client.model,
        client.layout,
        names,
        Batches(client, scored_examples(question, client)),
        client.task.loss,
        question.masks,
        {n: t.to(client.device) for n, t in given.items()},
        c.unit,
        c.probes or 0,
        derive(c.seed, "score", question.round),
        c.gradient_blocks,
        **kept,
    )


REMEMBERED = "score"  # What a score remembers


def scored_examples(question: Question, client: ClientContext) -> Part:
    """The training examples that a client is scored on: all, or some drawn for the round."""
    c, part = client.config, client.shard.train
    if c.score_examples is None or c.score_examples >= examples(part) or question.kind in _FITS:
        return part
    gen = generator(c.seed, "calibration", question.round, client.partition)
    drawn = torch.randperm(examples(part), generator=gen)[: c.score_examples]
    return next(batches(part, c.score_examples, drawn.sort().values))


_FITS = ("inputs", "outputs", "magnitudes", "signals")
"""Questions about inputs, for redundancy, least squares and quantising: no scores."""


def client_evidence(
    question: Question, client: ClientContext, names: tuple[str, ...], **more: Any
) -> Evidence:
    """What a client scores with: its count of labels, and the further attributes of `Evidence`."""
    labels = client.task.labels(scored_examples(question, client))
    held = (question.weights, question.masks, question.round)
    return evidence_about(held, names, client.config, client.layout, count=labels, **more)


def cleared(sums: Mapping[str, Tensor], masks: Masks) -> Tensors:
    """The sums on the CPU, with 0.0 where something was removed, whatever stands there.

    Where nothing was they are not copied; of the others each is let go of when it is copied, unless
    somebody else holds it.
    """
    left, fits = dict(sums.items()), fitting(shapes_of(sums), masks)
    del sums
    out: Tensors = {}
    for name in list(left):
        here = {name: fits[name]} if name in fits else {}
        own = on_cpu({name: left.pop(name)})
        out |= masked(own, here) if here else own
    return out
