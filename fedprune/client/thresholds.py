"""A client whose weights are its own, and of which thresholds of rows alone travel (SpaFL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fedprune.client.context import ClientContext
from fedprune.client.memory import Recollection
from fedprune.learning.local_training import Tuned
from fedprune.learning.manners import Manner
from fedprune.learning.thresholds import pulled, rows_kept, thresholded, under_thresholds
from fedprune.protocol.messages import Answer, Question
from fedprune.structure.layout import Layout, as_rows, from_rows
from fedprune.tensors.models import found_in, load_into, state_of
from fedprune.tensors.named import Tensors, copied, gathered, on_cpu

THRESHOLD, LAST_STEP = ".threshold", ".moved"
"""What follows a tensor's name in what goes along: the thresholds, and how they moved last."""

_WEIGHTS, _THRESHOLDS = "own", "thresholds"


def as_kept(question: Question, own: Recollection, layout: Layout) -> Question:
    """The question about the client's own model, as it is measured: its weights, its thresholds."""
    weights = {**question.weights, **own.recall(_WEIGHTS)}
    return replace(question, weights=under_thresholds(weights, own.recall(_THRESHOLDS), layout))


def answer_thresholds(
    question: Question, client: ClientContext, train: Callable[[Manner], Tuned]
) -> Answer:
    """How the thresholds moved in training, which the client keeps with its weights.

    `question`: with the thresholds, and how they moved last.
    """
    layout, given = client.layout, question.given
    begun = {n: given[f"{n}{THRESHOLD}"] for n in layout.prunable}
    load_into(client.model, _begun(question, client.memory, layout))
    named = found_in(client.model).parameters
    on_device = {n: t.clone().to(client.device) for n, t in begun.items()}
    c = client.config
    speed = (question.lr, c.momentum or 0.0)
    those = {n: named[n] for n in begun}
    tuned = train(thresholded(those, on_device, layout, speed, question.regime.penalty))
    state, now = copied(on_cpu(state_of(client.model))), on_cpu(on_device)
    client.memory.keep(_WEIGHTS, state)
    client.memory.keep(_THRESHOLDS, now)
    sparse = {n: as_rows(layout, n, state[n]) for n in begun}
    kept = sum(float(rows_kept(w, now[n]).sum()) * w.shape[1] for n, w in sparse.items())
    totals = {"loss": tuned.loss, "count": tuned.count, "kept": kept}
    values = gathered({n: now[n] - t for n, t in begun.items()}, {})
    return Answer(values, float(client.task.labels(client.shard.train)), totals)


def _begun(question: Question, own: Recollection, layout: Layout) -> Tensors:
    """The client's own weights, moved by what all clients' thresholds did last."""
    weights = {**question.weights, **own.recall(_WEIGHTS)}
    for n in layout.prunable:
        rows = as_rows(layout, n, weights[n])
        kernel = torch.Size(layout.shapes[n][2:]).numel()
        per = kernel if len(layout.shapes[n]) > 2 else rows.shape[1]
        moved = pulled(rows, question.given[f"{n}{LAST_STEP}"], per)
        weights[n] = from_rows(layout, n, moved).contiguous()
    return weights
