"""The client's half of a round: from a question and a private shard to one summand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.choosing import Wanted, chosen
from fedprune.compression.wire import SCORE_TYPES, pack, values_of
from fedprune.config import RunConfig
from fedprune.forms import fitting
from fedprune.learning.averaging import change
from fedprune.learning.training import step_batches, tune
from fedprune.messages import Answer, Question, Refused
from fedprune.plugins import scores_of
from fedprune.pruning.combining import COMBINES, NORMALISE, l1_normalised
from fedprune.pruning.layout import Layout
from fedprune.pruning.score import Evidence, Probe, Score, Watcher
from fedprune.randomness import derive, generator, seeded
from fedprune.tasks.metrics import label_counts
from fedprune.tasks.task import Part, Shard, Task, batches, extra_names
from fedprune.tensors import (
    Masks,
    Tensors,
    copied,
    kept,
    load_into,
    masked,
    on_cpu,
    shapes_of,
    spread,
    state_of,
)


@dataclass(frozen=True)
class Seat:
    """Where one client sits: everything its answer depends on beside the question.

    Attributes:
        partition: which one it is.
        shard: its private data.
        model: the process's resident model; its values are overwritten.
        task: the loss and what it counts.
        config: complete configuration.
        layout: the model's layout.
        device: where the model is.
        tuned: the same model, compiled where that was asked for.
    """

    partition: int
    shard: Shard
    model: nn.Module
    task: Task
    config: RunConfig
    layout: Layout
    device: torch.device
    tuned: nn.Module

    def moved(self, parts: Iterator[Part]) -> Iterator[Part]:
        """The batches on the model's device."""
        for part in parts:
            yield {name: t.to(self.device) for name, t in part.items()}


@dataclass(frozen=True)
class Batches:
    """A part in batches on the model's device, as often as one likes."""

    seat: Seat
    part: Part

    def __iter__(self) -> Iterator[Part]:
        return self.seat.moved(batches(self.part, self.seat.config.score_batch))


def answer(question: Question, seat: Seat) -> Answer:
    """The client's half of a round: its summand, a function of the question and its own shard."""
    load_into(seat.model, question.weights)
    return _ANSWERS[question.kind](question, seat)


def _probe(question: Question, seat: Seat, names: tuple[str, ...], given: Tensors) -> Probe:
    c = seat.config
    return Probe(
        seat.model,
        seat.layout,
        names,
        Batches(seat, seat.shard.train),
        seat.task.loss,
        question.masks,
        {n: t.to(seat.device) for n, t in given.items()},
        c.unit,
        c.probes or 0,
        derive(c.seed, "score", question.round),
    )


def _evidence(question: Question, seat: Seat, names: tuple[str, ...], **more: Any) -> Evidence:
    c = seat.config
    return Evidence(
        count=seat.task.labels(seat.shard.train),
        weights={n: question.weights[n] for n in names},
        masks={n: question.masks[n] for n in names},
        layout=seat.layout,
        generator=generator(c.seed, "score", question.round),
        seed=derive(c.seed, "score", question.round),
        probes=c.probes or 0,
        unit=c.unit,
        **more,
    )


def _answer_score(question: Question, seat: Seat) -> Answer:
    ask = scores_of(seat.config.plugin)[question.score].asks[question.ask]
    names = question.names or seat.layout.prunable
    seat.model.eval()
    collected = ask.collect(_probe(question, seat, names, question.given))
    dead = {} if question.dense else question.masks
    sums = _cleared(copied(collected), dead)
    return _statistic(question, seat, names, sums)


def _cleared(sums: Tensors, masks: Masks) -> Tensors:
    """The same with 0.0 where something was removed, whatever stands there."""
    return masked(sums, fitting(shapes_of(sums), masks))


def _statistic(question: Question, seat: Seat, names: tuple[str, ...], sums: Tensors) -> Answer:
    """What a client releases of its statistics: the sums, its own scores, or votes."""
    c, labels = seat.config, seat.task.labels(seat.shard.train)
    score = scores_of(c.plugin)[question.score]
    fits = {} if question.dense else fitting(shapes_of(sums), question.masks)
    values, totals = kept(sums, fits), {"count": float(labels)}
    if c.normalise == "l1" and COMBINES[c.combine].pooled:
        values = (l1_normalised(values) * labels).float()
    if question.dense or question.ask < len(score.asks) - 1:
        return Answer(values.float(), 1.0, totals)
    # A client without finite statistics has no vote; its answer is refused, with the tensor's name.
    if not torch.isfinite(values).all():
        return Answer(values.float(), 1.0, totals)
    combine = COMBINES[c.combine]
    if combine.pooled and question.sparsity is None:
        return Answer(values.float(), 1.0, totals)
    own = _own_scores(score, question, seat, names, sums)
    votes = _own_mask(question, seat, names, own)
    totals |= _overlap(question, seat, names, own, votes)
    if combine.pooled:
        return Answer(values.float(), 1.0, totals, votes)
    alive = {n: question.masks[n] for n in names}
    flat = combine.transform(NORMALISE[c.normalise](kept(own, alive)))
    if not combine.valued:
        if votes is None:
            raise Refused("votes", "votes need a sparsity")
        return Answer(torch.empty(0), 1.0, totals, votes)
    return Answer(flat.float(), float(labels), totals, votes)


def _own_scores(
    score: Score, question: Question, seat: Seat, names: tuple[str, ...], sums: Tensors
) -> Tensors:
    given = question.given
    evidence = _evidence(
        question, seat, names, sums={n: s.double() for n, s in sums.items()}, given=given
    )
    return score.finalise(evidence)


def _own_mask(
    question: Question, seat: Seat, names: tuple[str, ...], scores: Tensors
) -> Tensor | None:
    """This client's own mask at the sparsity asked, on the kept coordinates."""
    if question.sparsity is None:
        return None
    c = seat.config
    alive = {n: question.masks[n] for n in names}
    weights = {n: question.weights[n] for n in names}
    wanted = Wanted(question.sparsity, c.vote_scope or c.scope)
    return kept(chosen(scores, wanted, c, seat.layout, alive, weights), alive)


def _overlap(
    question: Question,
    seat: Seat,
    names: tuple[str, ...],
    scores: Tensors,
    votes: Tensor | None,
) -> dict[str, float]:
    """How many of the weights kept by the client's mask it would keep after the cast on the wire.

    Taken on its own scores: what the cast does to a sum of many clients can only be less.
    """
    c = seat.config
    if votes is None or c.score_wire == "fp32":
        return {}
    shapes = shapes_of(scores)
    masks = fitting(shapes, {n: question.masks[n] for n in names})
    cast = values_of(pack({}, kept(scores, masks).float(), SCORE_TYPES[c.score_wire]))
    rounded = _own_mask(question, seat, names, spread(cast, shapes, masks))
    assert rounded is not None
    return {"overlap": float((votes & rounded).sum()), "own": float(votes.sum())}


def _answer_tune(question: Question, seat: Seat) -> Answer:
    where = (question.round, seat.partition)
    c, task, part = seat.config, seat.task, seat.shard.train
    masks, votes = question.masks, None
    if question.score and c.masks != "global":
        masks, votes = _own_pruning(question, seat)
    on_device = {name: m.to(seat.device) for name, m in masks.items()}
    steps = step_batches(part, c, generator(c.seed, "batches", *where))
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
        )
    moved = change(on_cpu(state_of(seat.model)), question.weights, seat.layout)
    statistics = None
    if tuned.statistics is not None:
        sums = _cleared(copied(tuned.statistics), masks)
        statistics = kept(sums, fitting(shapes_of(sums), question.masks)).float()
    totals = {"loss": tuned.loss, "count": tuned.count}
    values = kept(moved, question.masks)
    return Answer(values, float(task.labels(part)), totals, votes, statistics)


def _watch(question: Question, seat: Seat) -> AbstractContextManager[Watcher] | None:
    """What collects the score's statistic while the client tunes, where that is asked."""
    if not question.score or seat.config.score_during != "tune":
        return None
    watch = scores_of(seat.config.plugin)[question.score].asks[0].watch
    assert watch is not None  # the configuration refuses a score without one
    return watch(seat.model, seat.layout, seat.layout.prunable)


def _own_pruning(question: Question, seat: Seat) -> tuple[Masks, Tensor]:
    """Prune the model in place by the client's own evidence; its mask, whole and as flags."""
    names = seat.layout.prunable
    score = scores_of(seat.config.plugin)[question.score]
    seat.model.eval()
    sums: Tensors = {}
    given: Tensors = {}
    for ask in score.asks:
        doubles = {n: s.double() for n, s in sums.items()}
        if ask.given is not None:
            given = ask.given(_evidence(question, seat, names, sums=doubles, given=given))
        sums = _cleared(copied(ask.collect(_probe(question, seat, names, given))), question.masks)
    own = _own_scores(score, replace(question, given=given), seat, names, sums)
    votes = _own_mask(question, seat, names, own)
    assert votes is not None  # the question has a sparsity
    masks = spread(votes, shapes_of(question.masks), question.masks)
    load_into(seat.model, masked(question.weights, masks))
    return masks, votes


@torch.no_grad()
def _answer_evaluate(question: Question, seat: Seat) -> Answer:
    part = {"validation": seat.shard.validation, "test": seat.shard.test}[question.part]
    task = seat.task
    seat.model.eval()
    names = ("loss", "correct", "count", *extra_names(task, seat.config))
    totals = dict.fromkeys(names, 0.0)
    for batch in seat.moved(batches(part, seat.config.score_batch)):
        loss = task.loss(seat.model, batch)
        sums = {"loss": loss.total.item(), "correct": loss.correct, "count": loss.count}
        _add(totals, {**sums, **loss.extra})
    if question.part == "test" and task.exam is not None:
        on_device = next(seat.moved(iter([part])))
        totals |= task.exam(seat.model, on_device, seat.config)
    return Answer(torch.empty(0), 1.0, totals)


def _add(totals: dict[str, float], sums: Mapping[str, float]) -> None:
    for name in totals:
        totals[name] += sums[name]


def _answer_describe(question: Question, seat: Seat) -> Answer:
    """How often each label occurs in training and test."""
    del question
    assert seat.task.classes is not None  # else nobody asks
    classes = seat.task.classes(seat.config)
    counts = [label_counts(part, classes) for part in (seat.shard.test, seat.shard.train)]
    return Answer(torch.cat(counts).float(), 1.0, {})


_ANSWERS: dict[str, Callable[[Question, Seat], Answer]] = {
    "score": _answer_score,
    "tune": _answer_tune,
    "evaluate": _answer_evaluate,
    "describe": _answer_describe,
}
