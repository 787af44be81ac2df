"""The client's half of measuring: sums over a held-out part of its shard."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fedprune.client.context import ClientContext
from fedprune.learning.candidates import blended, without
from fedprune.protocol.forms import samples
from fedprune.protocol.messages import Answer, Question
from fedprune.streaming.blocks import through
from fedprune.tasks.client_spread import in_bin
from fedprune.tasks.measures import spread_sums
from fedprune.tasks.task import Part, batches, extra_names
from fedprune.tensors.models import load_into


@torch.no_grad()
def answer_evaluate(question: Question, client: ClientContext) -> Answer:
    """What the model makes of a held-out part, summed: loss, labels, what else the task counts."""
    part, task = _held_out(question, client), client.task
    totals = _measured(part, client)
    if samples(question, client.config):
        totals |= spread_sums(totals["loss"], totals["count"])
    if question.part == "test" and client.config.client_percentiles:
        totals |= in_bin(task.metric, totals)
    if question.part == "test" and task.test_sums is not None:
        on_device = next(client.moved(iter([part])))
        totals |= task.test_sums(client.model, on_device, client.config)
    return Answer(torch.empty(0), 1.0, totals)


def _held_out(question: Question, client: ClientContext) -> Part:
    return {"validation": client.shard.validation, "test": client.shard.test}[question.part]


def _measured(part: Part, client: ClientContext) -> dict[str, float]:
    """Sums over a part of the model as it is."""
    task = client.task
    client.model.eval()
    names = ("loss", "correct", "count", *extra_names(task, client.config))
    totals = dict.fromkeys(names, 0.0)

    def measured(batch: Part) -> dict[str, float]:
        loss = task.loss(client.model, batch)
        sums = {"loss": loss.total.item(), "correct": loss.correct, "count": loss.count}
        return {**sums, **loss.extra}

    parts = client.moved(batches(part, client.config.score_batch))
    for sums in through(client.model, parts, measured):
        _add(totals, sums)
    return totals


LOST = 1e30  # The loss of a candidate whose loss is no number: it cannot win, and spoils no sum


@torch.no_grad()
def answer_compare(question: Question, client: ClientContext) -> Answer:
    """Loss and correct of every candidate on a held-out part, and the labels in it."""
    part, totals = _held_out(question, client), dict[str, float]()
    for i, candidate in enumerate(question.candidates):
        if question.rungs:
            weights = without(question.weights, question.rungs, candidate)
        else:
            weights = blended(question.weights, question.given, candidate, client.layout)
        load_into(client.model, weights)
        sums = _measured(part, client)
        # Of the model as it is, the first, a loss that is no number is the client's failure.
        lost = i > 0 and not math.isfinite(sums["loss"])
        totals |= {f"loss_{i}": LOST if lost else sums["loss"], f"correct_{i}": sums["correct"]}
        totals["count"] = sums["count"]
    return Answer(torch.empty(0), 1.0, totals)


def _add(totals: dict[str, float], sums: Mapping[str, float]) -> None:
    for name in totals:
        totals[name] += sums[name]
