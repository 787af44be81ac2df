"""Putting questions: what clients have already, what it costs, who failed; and a score's asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fedprune.client.memory import keeps, memory_of
from fedprune.codec.model_digest import model_digest
from fedprune.codec.wire import digest_of
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.options.refusal import counted
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.choice import evidence_about
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Ask, Port
from fedprune.runtime.process import trim_memory
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.score import Evidence, Score
from fedprune.server.fleet import clocked
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Talk
from fedprune.server.spoilt import check_score, given_by
from fedprune.server.standing import limit_of, too_few, weighed
from fedprune.server.state import Book, Model
from fedprune.streaming.blocks import is_streamed
from fedprune.tensors.models import load_into

_T = TypeVar("_T")


def conversed(talk: Talk[_T], book: Book, plan: Plan, port: Port) -> tuple[_T, Book]:
    """Hold a conversation: what it returns, and the book with all that was asked in it.

    Raises:
        Spent: the privacy budget does not allow for the next question.
    """
    try:
        asks = next(talk)
        while True:
            book, sums = exchanged(asks, book, plan, port)
            # Whoever empties the list has the only hold on the sums, and can let go of them.
            asks = talk.send(sums)
    except StopIteration as end:
        return end.value, book


def exchanged(
    asks: Sequence[Ask], book: Book, plan: Plan, port: Port
) -> tuple[Book, list[Aggregate]]:
    """Put the asks of one exchange: one sum for each, in their order."""
    c, sums = plan.config, []
    asks = [replace(a, question=addressed(a.question, book, c, a.partitions)) for a in asks]
    asks = [replace(a, question=_by_base(a.question, plan)) for a in asks]
    found = port.put(asks)
    book = clocked(book, asks, found)
    for ask, aggregate in zip(asks, found, strict=True):
        book = _booked(book, ask.question, aggregate)
        if ask.question.kind == "tune":
            book, aggregate = weighed(book, aggregate, c)
            down, up = plan.dense_packet
            dense = down * len(ask.partitions) + up * len(aggregate.answered)
            book = replace(book, traffic=replace(book.traffic, dense=book.traffic.dense + dense))
        book = _remembered(book, ask, aggregate, c)
        sums.append(aggregate)
    return book, sums


def addressed(
    question: Question, book: Book, config: RunConfig, partitions: Sequence[int]
) -> Question:
    """The question with what the book knows of those asked: who has what, and which limit holds."""
    digest = model_digest(question.masks, question.edits)
    what: dict[str, Any] = {"known": frozenset(p for p, d in book.known.items() if d == digest)}
    if question.teacher:
        name = digest_of(question.teacher)
        what["taught"] = frozenset(p for p, held in book.taught.items() if held == name)
    if question.kind == "tune":
        what["limit"] = limit_of(config, book.norms)
    if of := memory_of(question, config):
        what["counted"] = {p: book.counted.get(of, {}).get(p, 0) for p in partitions}
    return replace(question, **what)


def _by_base(question: Question, plan: Plan) -> Question:
    """The question, said by the base model where some of its tensors are those of it."""
    base = plan.base
    if base is None or not KINDS[question.kind].weights:
        return question
    like = set(base.like(question.weights, question.masks))
    if not like:
        return question
    unlike = tuple(sorted(n for n in question.weights if n not in like))
    return replace(question, base=base.digest, unlike=unlike)


def _remembered(book: Book, ask: Ask, aggregate: Aggregate, config: RunConfig) -> Book:
    """The book with who keeps something with an answer that came; not of who failed once since."""
    if not keeps(ask.question, config):
        return book
    of = memory_of(ask.question, config)
    before = book.kept.get(of, frozenset()).difference(ask.partitions)
    return replace(book, kept={**book.kept, of: before.union(aggregate.answered)})


def _booked(book: Book, question: Question, aggregate: Aggregate) -> Book:
    """The book with a question that was answered."""
    t, answered = book.traffic, aggregate.answered
    if KINDS[question.kind].counts == "evaluation":
        t = replace(t, evaluation=t.evaluation + aggregate.bytes_up + aggregate.bytes_down)
    else:
        t = replace(t, up=t.up + aggregate.bytes_up, down=t.down + aggregate.bytes_down)
    book = noticed(book, question.kind, aggregate)
    digest = model_digest(question.masks, question.edits)
    book = replace(
        book,
        notices=book.notices + aggregate.notices,
        known={**book.known, **dict.fromkeys(answered, digest)},
        traffic=t,
    ).with_failures(aggregate.failures)
    if not question.teacher:
        return book
    taught = dict.fromkeys(answered, digest_of(question.teacher))
    return replace(book, taught={**book.taught, **taught})


def asked(
    model: Model, r: Round, names: tuple[str, ...], sparsity: float | None
) -> Talk[tuple[Aggregate, Evidence | None]]:
    """All asks of the score, and the evidence of the last; none, if too few answered.

    Raises:
        Spoilt: a score of the user's own makes nothing of what was sent.
    """
    c = r.config
    score = scores_of(c.plugin)[c.score]
    evidence = evidence_of(model, r, names)
    who = tuple(r.scored)
    aggregate = Aggregate(answered=who)
    for i, ask in enumerate(score.asks):
        given = given_by(ask, evidence, aggregate)
        last = i == len(score.asks) - 1
        votes = sparsity if last and _voting(score, r.plan) else None
        what: dict[str, Any] = {"score": c.score, "ask": i, "names": names, "given": given}
        what |= {"sparsity": votes, "progress": r.plan.progress(r.number)}
        question = r.question(model, "score", **what)
        aggregate = (yield [Ask(question, who)]).pop()
        trim_memory(r.layout.parameters)  # scores are made of what it left free
        if too_few(aggregate, c) or not (aggregate.answered or c.sampling == "poisson"):
            return aggregate, None
        form, total = form_of(question, c, r.layout), aggregate.total
        sums = {} if total is None else form.named(total, shared=True)
        count = aggregate.totals["count"]
        evidence = replace(evidence, sums=sums, count=count, given=question.given)
    check_score(evidence, aggregate, c)
    return aggregate, evidence


def _in_parts(plan: Plan) -> bool:
    """Whether the model is one that is read block by block."""
    return plan.model is not None and is_streamed(plan.model)


def _voting(score: Score, plan: Plan) -> bool:
    """Whether clients vote; to measure agreement not on a model that is read in parts."""
    c = plan.config
    elected = not combines_of(c.plugin)[c.combine].valued
    return score.step is None and (elected or (c.agreement and not _in_parts(plan)))


def evidence_of(model: Model, r: Round, names: tuple[str, ...]) -> Evidence:
    """What the server knows before it asks, of the tensors named (none: all that are prunable)."""
    plan = r.plan
    score = scores_of(plan.config.plugin)[plan.config.score]
    looks = not score.asks or plan.config.plugin or _in_parts(plan)
    own = plan.model if looks else None  # of a large model one more is one too many
    if own is not None:
        load_into(own, model.weights)
        own.eval()
    wanted = names or plan.layout.prunable
    seen = {"sums": {}, "count": 1.0, "model": own, "dummy": plan.dummy}
    held = (model.weights, model.masks, r.number)
    return evidence_about(held, wanted, plan.config, plan.layout, **seen)


def noticed(book: Book, kind: str, aggregate: Aggregate) -> Book:
    """The book after one more secure sum: who was in it, and what to say about it.

    Two sums over sets that differ by one client can be taken from each other. What is left is that
    client's part, as far as both were of the same question. It is said once for every two sets.
    """
    if not aggregate.tries:
        return book
    members, notices = frozenset(aggregate.answered), list(book.notices)
    if aggregate.tries > 1:
        notices.append(
            f"{kind}: the secure sum was tried again, "
            f"{counted(len(members), 'client is', 'clients are')} in it"
        )
    if not members or members in book.sums:
        return replace(book, notices=tuple(notices))
    odd = (members ^ others for others in book.sums)
    if apart := sorted({p for those in odd if len(those) == 1 for p in those}):
        who = ", ".join(map(str, apart))
        notices.append(f"{kind}: this sum and an earlier one differ by one client alone: {who}")
    return replace(book, notices=tuple(notices), sums=(*book.sums, members))
