"""READ FIRST: a round of federated pruning. Score, prune, tune, average, measure.

`run` is the loop. It knows one port, *ask*: "put this question to these partitions and give me
their answers, folded into one sum". Engines implement it (inline, a Flower grid); nothing here
knows Flower, Ray, a clock or a global random number. First the server's half, then `answer`,
the client's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.compression.masks import mask_digest
from fedprune.config import RunConfig
from fedprune.learning.averaging import averaged, change
from fedprune.learning.training import learning_rate, step_batches, tune
from fedprune.messages import Answer, Folded, Question
from fedprune.plugins import scores_of
from fedprune.pruning.layout import Layout
from fedprune.pruning.scores import Evidence, Probe
from fedprune.pruning.selection import above, select
from fedprune.randomness import draw, generator, seeded
from fedprune.report.rows import Row, row
from fedprune.state import Plan, Port, State, Totals
from fedprune.tasks.task import Part, Shard, Task, batches
from fedprune.tensors import (
    Masks,
    Tensors,
    copied,
    kept,
    load_into,
    masked,
    on_cpu,
    spread,
    state_of,
)


def run(state: State, plan: Plan, port: Port) -> Iterator[tuple[State, Row]]:
    """The loop: from `state` on, one state and one row of the report after every round."""
    c = plan.config
    while state.round < c.rounds:
        state = replace(state, round=state.round + 1, failures=())
        cohort = draw(list(port.present()), c.cohort, generator(c.seed, "cohort", state.round))
        agreement = None
        if state.owed or plan.prunes(state.round):
            if state.round == c.warmup + 1:
                state, totals = measure(state, port, "test")
                state = replace(state, dense_at_pruning=totals)
            state, evidence = score(state, plan, port, cohort)
            state, agreement = prune(state, plan, evidence), agreement_of(evidence)
        state, changes = tune_all(state, plan, port, cohort)
        state = average(state, plan, changes)
        state, totals = measure(state, port, "validation")
        yield state, row(state, plan, cohort, changes, totals, agreement)


def score(state: State, plan: Plan, port: Port, cohort: Sequence[int]) -> tuple[State, Folded]:
    """The cohort's summed statistics; a score that asks nobody costs nothing."""
    c = plan.config
    if scores_of(c.plugin)[c.score].statistics is None:
        return state, Folded(answered=tuple(cohort))
    votes = plan.sparsity(state.round) if c.agreement else None
    question = _question(state, "score", score=c.score, sparsity=votes)
    return _put(state, port, question, cohort)


def prune(state: State, plan: Plan, evidence: Folded) -> State:
    """The state under its new mask; as it was, and owing a pruning, if too few answered."""
    c = plan.config
    if len(evidence.answered) < c.min_clients:
        return replace(state, owed=True)
    weights = {name: state.weights[name] for name in state.masks}
    scores = scores_of(c.plugin)[c.score].finalise(
        Evidence(
            _sums(evidence, state.masks, plan.layout),
            evidence.totals.get("count", 1.0),
            weights,
            generator(c.seed, "score", state.round),
        )
    )
    masks = _selected(scores, plan.sparsity(state.round), c, state.masks, weights)
    return replace(state, masks=masks, weights=masked(state.weights, masks), owed=False)


def _sums(evidence: Folded, masks: Masks, layout: Layout) -> Tensors:
    if evidence.total is None:
        return {}
    return spread(evidence.total, {n: layout.shapes[n] for n in masks}, masks)


def _selected(
    scores: Tensors, sparsity: float | None, c: RunConfig, alive: Masks, weights: Tensors
) -> Masks:
    magnitude = {name: w.abs() for name, w in weights.items()}
    if sparsity is None:
        assert c.threshold is not None  # the configuration has one or the other
        return above(scores, c.threshold, alive=alive, magnitude=magnitude, floor=c.floor)
    return select(scores, sparsity, scope=c.scope, alive=alive, magnitude=magnitude, floor=c.floor)


def tune_all(state: State, plan: Plan, port: Port, cohort: Sequence[int]) -> tuple[State, Folded]:
    """The cohort's summed changes after training under the current mask."""
    question = _question(state, "tune", lr=learning_rate(plan.config, state.round))
    state, changes = _put(state, port, question, cohort)
    down, up = plan.dense_packet
    dense = down * len(cohort) + up * len(changes.answered)
    traffic = replace(state.traffic, dense=state.traffic.dense + dense)
    return replace(state, traffic=traffic), changes


def average(state: State, plan: Plan, changes: Folded) -> State:
    """The state with the mean change applied; as it was, if too few answered."""
    c = plan.config
    if changes.total is None or len(changes.answered) < c.min_clients:
        return state
    weights = averaged(
        state.weights, changes.total, changes.weight, state.masks, plan.layout, c.server_lr
    )
    return replace(state, weights=weights, completed=state.completed + 1)


def measure(state: State, port: Port, part: str) -> tuple[State, Totals]:
    """Loss, correct and count summed over a held-out part of everyone who is there."""
    question = _question(state, "evaluate", part=part)
    state, folded = _put(state, port, question, list(port.present()))
    return state, folded.totals


def _question(state: State, kind: str, **what: Any) -> Question:
    digest = mask_digest(state.masks)
    known = frozenset(p for p, held in state.known.items() if held == digest)
    return Question(kind, state.round, state.weights, state.masks, known=known, **what)


def _put(
    state: State, port: Port, question: Question, partitions: Sequence[int]
) -> tuple[State, Folded]:
    folded = port.ask(question, partitions)
    digest = mask_digest(state.masks)
    t = state.traffic
    if question.kind == "evaluate":
        t = replace(t, evaluation=t.evaluation + folded.bytes_up + folded.bytes_down)
    else:
        t = replace(t, up=t.up + folded.bytes_up, down=t.down + folded.bytes_down)
    return replace(
        state,
        known={**state.known, **dict.fromkeys(folded.answered, digest)},
        traffic=t,
        failures=state.failures + folded.failures,
        failed=state.failed + len(folded.failures),
    ), folded


def agreement_of(evidence: Folded) -> float | None:
    """How much two clients' own masks share on average: Σ c_j (c_j - 1) / (K (K-1) k).

    c_j counts the clients that vote to keep weight j, K clients voted, each for k weights. None
    where fewer than two voted. Unlike a mean over pairs it needs only the sum of the votes.
    """
    votes, voters = evidence.votes, len(evidence.answered)
    if votes is None or voters < 2:
        return None
    each = int(votes.sum()) / voters
    if not each:
        return None
    return int((votes * (votes - 1)).sum()) / (voters * (voters - 1) * each)


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
    """

    partition: int
    shard: Shard
    model: nn.Module
    task: Task
    config: RunConfig
    layout: Layout
    device: torch.device

    def moved(self, parts: Iterator[Part]) -> Iterator[Part]:
        """The batches on the model's device."""
        for part in parts:
            yield {name: t.to(self.device) for name, t in part.items()}


def answer(question: Question, seat: Seat) -> Answer:
    """The client's half of a round: its summand, a function of the question and its own shard."""
    load_into(seat.model, question.weights)
    return _ANSWERS[question.kind](question, seat)


def _answer_score(question: Question, seat: Seat) -> Answer:
    statistics = scores_of(seat.config.plugin)[question.score].statistics
    if statistics is None:
        raise ValueError(f"score {question.score} asks nobody")
    part = seat.shard.train
    labels = seat.task.labels(part)
    size = seat.config.score_batch
    seat.model.eval()
    given = seat.moved(batches(part, size))
    probe = Probe(seat.model, seat.layout.prunable, given, seat.task.loss)
    sums = masked(copied(statistics(probe)), question.masks)
    values = kept(sums, question.masks)
    # A client without finite statistics has no vote; its answer is refused, with the tensor's name.
    votes = _votes(question, seat, sums, labels) if torch.isfinite(values).all() else None
    return Answer(values, 1.0, {"count": labels}, votes)


def _votes(question: Question, seat: Seat, sums: Tensors, labels: int) -> Tensor | None:
    """This client's own mask at the sparsity asked, on the kept coordinates."""
    if question.sparsity is None:
        return None
    c = seat.config
    weights = {name: question.weights[name] for name in question.masks}
    evidence = Evidence(sums, labels, weights, generator(c.seed, "score", question.round))
    scores = scores_of(c.plugin)[question.score].finalise(evidence)
    own = _selected(scores, question.sparsity, c, question.masks, weights)
    return kept(own, question.masks)


def _answer_tune(question: Question, seat: Seat) -> Answer:
    where = (question.round, seat.partition)
    c, task, part = seat.config, seat.task, seat.shard.train
    masks = {name: m.to(seat.device) for name, m in question.masks.items()}
    steps = step_batches(part, c, generator(c.seed, "batches", *where))
    with seeded(c.seed, "dropout", *where):
        tuned = tune(seat.model, masks, seat.moved(steps), task.loss, question.lr, c)
    moved = change(on_cpu(state_of(seat.model)), question.weights, seat.layout)
    totals = {"loss": tuned.loss, "count": tuned.count}
    return Answer(kept(moved, question.masks), float(task.labels(part)), totals)


@torch.no_grad()
def _answer_evaluate(question: Question, seat: Seat) -> Answer:
    part = {"validation": seat.shard.validation, "test": seat.shard.test}[question.part]
    seat.model.eval()
    totals = {"loss": 0.0, "correct": 0, "count": 0}
    for batch in seat.moved(batches(part, seat.config.score_batch)):
        loss = seat.task.loss(seat.model, batch)
        totals["loss"] += loss.total.item()
        totals["correct"] += loss.correct
        totals["count"] += loss.count
    return Answer(torch.empty(0), 1.0, totals)


_ANSWERS: dict[str, Callable[[Question, Seat], Answer]] = {
    "score": _answer_score,
    "tune": _answer_tune,
    "evaluate": _answer_evaluate,
}
