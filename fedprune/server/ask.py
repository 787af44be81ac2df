"""The server's half of scoring: put the questions of a score, and add up what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedprune.codec.model_digest import model_digest
from fedprune.codec.wire import digest_of
from fedprune.config.kinds import KINDS
from fedprune.protocol.choice import evidence_about
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Aggregate, Question
from fedprune.protocol.port import Port
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import COMBINES
from fedprune.scores.score import Evidence, Score
from fedprune.server.secure_notices import noticed
from fedprune.server.standing import too_few
from fedprune.server.state import Plan, State
from fedprune.tensors import load_into

Put = Callable[[State, Question, Sequence[int]], tuple[State, Aggregate]]
"""Puts a question to partitions; the state has the traffic and the failures in it."""


Ask = Callable[..., Question]
"""Makes a question about a state."""


@dataclass(frozen=True)
class Bench:
    """Where the server decides: what it asks through and plans with.

    Attributes:
        plan: what stays the same for the run.
        put: puts a question to the cohort.
        question: makes one about a state.
        cohort: the partitions asked.
        everyone: the partitions that could be asked, for choices made on validation.
        training: the partitions that a cohort can be drawn from.
    """

    plan: Plan
    put: Put
    question: Ask
    cohort: Sequence[int]
    everyone: Callable[[], Sequence[int]] = list
    training: Callable[[], Sequence[int]] = list

    @property
    def scored(self) -> Sequence[int]:
        """The partitions that are asked for scores."""
        return self.training() if self.plan.config.score_cohort == "all" else self.cohort


def bench_for(plan: Plan, port: Port, cohort: Sequence[int]) -> Bench:
    """Where the server decides in a round with this cohort."""

    def put_to(
        state: State, question: Question, partitions: Sequence[int]
    ) -> tuple[State, Aggregate]:
        return put(state, port, question, partitions)

    return Bench(plan, put_to, question_about, cohort, port.measuring, port.training)


def question_about(state: State, kind: str, **what: Any) -> Question:
    """A question about a state, which says who has its mask and edits already."""
    digest = model_digest(state.masks, state.edits)
    known = frozenset(p for p, held in state.known.items() if held == digest)
    what |= {"known": known, "edits": state.edits}
    return Question(kind, state.round, state.weights, state.masks, **what)


def put(
    state: State, port: Port, question: Question, partitions: Sequence[int]
) -> tuple[State, Aggregate]:
    """Put a question: the state with what asking changes in it, and the sum of the answers."""
    aggregate = port.ask(question, partitions)
    digest = model_digest(question.masks, question.edits)
    t = state.traffic
    if KINDS[question.kind].counts == "evaluation":
        t = replace(t, evaluation=t.evaluation + aggregate.bytes_up + aggregate.bytes_down)
    else:
        t = replace(t, up=t.up + aggregate.bytes_up, down=t.down + aggregate.bytes_down)
    taught = dict.fromkeys(aggregate.answered, digest_of(question.teacher))
    state = noticed(state, question.kind, aggregate)
    return replace(
        state,
        notices=state.notices + aggregate.notices,
        taught={**state.taught, **taught} if question.teacher else state.taught,
        known={**state.known, **dict.fromkeys(aggregate.answered, digest)},
        traffic=t,
        failures=state.failures + aggregate.failures,
        failed=state.failed + len(aggregate.failures),
    ), aggregate


def asked(
    state: State, bench: Bench, names: tuple[str, ...], sparsity: float | None
) -> tuple[State, Aggregate, Evidence | None]:
    """All asks of the score, and the evidence of the last; none, if too few answered."""
    c, plan = bench.plan.config, bench.plan
    score = scores_of(c.plugin)[c.score]
    evidence = evidence_of(state, plan, names)
    who = tuple(bench.scored)
    aggregate = Aggregate(answered=who)
    for i, ask in enumerate(score.asks):
        given = {} if ask.given is None else ask.given(evidence)
        given = {n: t.float() for n, t in given.items()}
        last = i == len(score.asks) - 1
        votes = sparsity if last and _voting(score, plan) else None
        what: dict[str, Any] = {"score": c.score, "ask": i, "names": names, "given": given}
        what |= {"sparsity": votes, "progress": plan.progress(state.round)}
        question = bench.question(state, "score", **what)
        state, aggregate = bench.put(state, question, who)
        if too_few(aggregate, c) or not (aggregate.answered or c.sampling == "poisson"):
            return state, aggregate, None
        evidence = _with_sums(evidence, aggregate, question, plan)
    return state, aggregate, evidence


def _voting(score: Score, plan: Plan) -> bool:
    c = plan.config
    return score.step is None and (c.agreement or not COMBINES[c.combine].valued)


def _with_sums(
    evidence: Evidence, aggregate: Aggregate, question: Question, plan: Plan
) -> Evidence:
    form = form_of(question, plan.config, plan.layout)
    sums = {} if aggregate.total is None else form.named(aggregate.total)
    count = aggregate.totals["count"]
    return replace(evidence, sums=sums, count=count, given=question.given)


def evidence_of(state: State, plan: Plan, names: tuple[str, ...]) -> Evidence:
    """What the server knows before it asks, of the tensors named (none: all that are prunable)."""
    if plan.model is not None:
        load_into(plan.model, state.weights)
        plan.model.eval()
    wanted = names or plan.layout.prunable
    seen = {"sums": {}, "count": 1.0, "model": plan.model, "dummy": plan.dummy}
    held = (state.weights, state.masks, state.round)
    return evidence_about(held, wanted, plan.config, plan.layout, **seen)
