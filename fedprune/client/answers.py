"""The client's half of a round: from a question and a private shard to one summand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch

from fedprune.client.context import Seat
from fedprune.client.dp_sgd import noisy_steps, poisson_steps
from fedprune.client.scoring import (
    answer_inputs,
    answer_outputs,
    answer_score,
    cleared,
    own_pruning,
)
from fedprune.client.teacher import lesson_of
from fedprune.client.tokens import counted
from fedprune.config.kinds import KINDS
from fedprune.learning.averaging import change
from fedprune.learning.candidates import blended, without
from fedprune.learning.local_training import (
    Backward,
    can_be_alone,
    step_batches,
    tune,
)
from fedprune.protocol.kinds import fitting, form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.noise import source_for
from fedprune.randomness import generator, seeded
from fedprune.scores.catalog import scores_of
from fedprune.scores.score import Watcher
from fedprune.selection.units import unit_labels
from fedprune.tasks.metrics import naive_of
from fedprune.tasks.task import Part, batches, extra_names
from fedprune.tensors import (
    Masks,
    Tensors,
    copied,
    kept,
    load_into,
    on_cpu,
    shapes_of,
    state_of,
)


def answer(question: Question, seat: Seat) -> Answer:
    """The client's half of a round: its summand, a function of the question and its own shard."""
    if KINDS[question.kind].weights:
        load_into(seat.model, question.weights)
    return ANSWERS[question.kind](question, seat)


def _answer_tune(question: Question, seat: Seat) -> Answer:
    where = (question.round, seat.partition)
    c, task, part = seat.config, seat.task, seat.shard.train
    masks, votes = question.masks, None
    if question.score and c.masks != "global":
        masks, votes = own_pruning(question, seat)
    on_device = {name: m.to(seat.device) for name, m in masks.items()}
    steps, backward = _steps(question, seat, on_device)
    moved_steps = (list(seat.moved(iter(step))) for step in steps)
    with seeded(c.seed, "dropout", *where):
        tuned = tune(
            seat.model,
            on_device,
            moved_steps,
            task,
            question.lr,
            c,
            watch=_watch(question, seat),
            called=seat.tuned,
            units=_units(seat),
            lesson=lesson_of(question, c, seat.teacher),
            backward=backward,
        )
    moved = change(on_cpu(state_of(seat.model)), question.weights, seat.layout)
    statistics = None
    if tuned.statistics is not None:
        sums = cleared(copied(tuned.statistics), masks)
        statistics = kept(sums, fitting(shapes_of(sums), question.masks)).float()
    totals: dict[str, float] = {"loss": tuned.loss, "count": tuned.count}
    if tuned.divergence is not None:
        totals["divergence"] = tuned.divergence
    values = kept(moved, question.masks)
    return Answer(values, float(task.labels(part)), totals, votes, statistics)


def _steps(
    question: Question, seat: Seat, masks: Masks
) -> tuple[Iterator[list[Part]], Backward | None]:
    """The batches of every step, and what takes their gradients where noise hides examples."""
    c, part = seat.config, seat.shard.train
    if c.dp != "example":
        gen = generator(c.seed, "batches", question.round, seat.partition)
        return step_batches(part, c, gen, alone=can_be_alone(seat.model)), None
    draws, noise = (source_for(question, c, seat.partition, what) for what in ("examples", "noise"))
    return poisson_steps(part, c, draws), noisy_steps(seat.model, seat.task, masks, c, noise)


def _answer_own(question: Question, seat: Seat) -> Answer:
    """The mask that this client would tune under, as flags."""
    return Answer(torch.empty(0), 1.0, {}, own_pruning(question, seat)[1])


def _units(seat: Seat) -> Tensors:
    """The units of a group lasso, by number; nothing without one."""
    c = seat.config
    if not c.group_lasso:
        return {}
    origin = seat.layout.origin
    if origin is None:
        return unit_labels(seat.layout, c.unit, c.unit_shape)
    # Of the model before the cut: what was cut out of it may be the last of its kind.
    return seat.layout.from_origin(unit_labels(origin.layout, c.unit, c.unit_shape))


def _watch(question: Question, seat: Seat) -> AbstractContextManager[Watcher] | None:
    """What collects the score's statistic while the client tunes, where that is asked."""
    if not question.score or seat.config.score_during != "tune":
        return None
    watch = scores_of(seat.config.plugin)[question.score].asks[0].watch
    assert watch is not None  # the configuration refuses a score without one
    return watch(seat.model, seat.layout, seat.layout.prunable)


@torch.no_grad()
def _answer_evaluate(question: Question, seat: Seat) -> Answer:
    part, task = _held_out(question, seat), seat.task
    totals = _measured(part, seat)
    if question.part == "test" and task.exam is not None:
        on_device = next(seat.moved(iter([part])))
        totals |= task.exam(seat.model, on_device, seat.config)
    return Answer(torch.empty(0), 1.0, totals)


def _held_out(question: Question, seat: Seat) -> Part:
    return {"validation": seat.shard.validation, "test": seat.shard.test}[question.part]


def _measured(part: Part, seat: Seat) -> dict[str, float]:
    """Sums over a part of the model as it is."""
    task = seat.task
    seat.model.eval()
    names = ("loss", "correct", "count", *extra_names(task, seat.config))
    totals = dict.fromkeys(names, 0.0)
    for batch in seat.moved(batches(part, seat.config.score_batch)):
        loss = task.loss(seat.model, batch)
        sums = {"loss": loss.total.item(), "correct": loss.correct, "count": loss.count}
        _add(totals, {**sums, **loss.extra})
    return totals


LOST = 1e30
"""The loss of a candidate whose loss is no number: it cannot win, and spoils no sum."""


@torch.no_grad()
def _answer_compare(question: Question, seat: Seat) -> Answer:
    """Loss and correct of every candidate on a held-out part, and the labels in it."""
    part, totals = _held_out(question, seat), dict[str, float]()
    for i, candidate in enumerate(question.candidates):
        if question.rungs:
            weights = without(question.weights, question.rungs, candidate)
        else:
            weights = blended(question.weights, question.given, candidate, seat.layout)
        load_into(seat.model, weights)
        sums = _measured(part, seat)
        # Of the model as it is, the first, a loss that is no number is the client's failure.
        lost = i > 0 and not math.isfinite(sums["loss"])
        totals |= {f"loss_{i}": LOST if lost else sums["loss"], f"correct_{i}": sums["correct"]}
        totals["count"] = sums["count"]
    return Answer(torch.empty(0), 1.0, totals)


def _add(totals: dict[str, float], sums: Mapping[str, float]) -> None:
    for name in totals:
        totals[name] += sums[name]


def _answer_describe(question: Question, seat: Seat) -> Answer:
    """Sums over the labels in training and test: how often each occurs, or what the task says."""
    del question
    naive = naive_of(seat.task)
    assert naive is not None  # else nobody asks
    sums = [naive.sums(part, seat.config) for part in (seat.shard.test, seat.shard.train)]
    return Answer(torch.cat(sums).float(), 1.0, {})


def _answer_tokens(question: Question, seat: Seat) -> Answer:
    """How often each token occurs in training and validation."""
    size = form_of(question, seat.config, seat.layout).values
    return Answer(counted(seat.shard, seat.task, size), 1.0, {})


ANSWERS: dict[str, Callable[[Question, Seat], Answer]] = {
    "score": answer_score,
    "tune": _answer_tune,
    "own": _answer_own,
    "evaluate": _answer_evaluate,
    "compare": _answer_compare,
    "describe": _answer_describe,
    "inputs": answer_inputs,
    "outputs": answer_outputs,
    "tokens": _answer_tokens,
}
