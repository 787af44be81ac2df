"""What one partition answers to a question: computed, hidden by noise if asked, encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from fedprune.client.answers import answer
from fedprune.client.context import ClientContext, warn_once
from fedprune.client.host import Host
from fedprune.client.kept_back import on_own_choice, with_kept_back
from fedprune.client.memory import Recollection
from fedprune.client.teacher import teacher_model
from fedprune.codec.stochastic_rounding import BITS
from fedprune.codec.wire import Packet, digest_of
from fedprune.config.kinds import KINDS
from fedprune.options.refusal import Refused
from fedprune.protocol.client_privacy import (
    hides,
    leaving,
    noised_means,
    noised_metrics,
    noises_itself,
)
from fedprune.protocol.form import Form
from fedprune.protocol.forms import form_of
from fedprune.protocol.limits import most_votes, source_for
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import encode_answer
from fedprune.randomness import generator
from fedprune.runtime.guarding import guarded
from fedprune.runtime.process import one_thread
from fedprune.tasks.later import shard_once
from fedprune.tasks.task import Shard
from fedprune.tensors.models import reset
from fedprune.tensors.named import digest


def _form(host: Host, question: Question) -> Form:
    """The form of the answers to a question, at hand for the newest one."""
    newest = host.newest
    if newest and newest[1] is question:
        return cast(Form, newest[2])
    return form_of(question, host.config, host.layout)


def released(host: Host, question: Question, partition: int) -> Packet:
    """What one partition sends: its answer, encoded."""
    return encoded(host, question, partition, answered(host, question, partition))


def answered(
    host: Host,
    question: Question,
    partition: int,
    seconds: float | None = None,
    own: Recollection | None = None,
    finish: Callable[[], Answer] | None = None,
) -> Answer:
    """One partition's answer; of a change with what it kept back before, where it does that.

    `own`: what it remembers, and where it keeps what it is to remember. `finish`: gives what was
    computed with others'; None: it computes by itself.

    Raises:
        RuntimeError: it took longer than so many seconds, by default half of the phase's.
    """
    limit = host.config.timeout / 2 if seconds is None else seconds
    reset(host.model, host.counters)
    with one_thread():
        client = client_of(host, question, partition, own or Recollection())
        given = _given(client, question, limit, finish or (lambda: answer(question, client)))
        return _leaving(host, question, client, given)


def client_of(host: Host, question: Question, partition: int, own: Recollection) -> ClientContext:
    """A partition as one client, with what it remembers."""
    return ClientContext(
        partition,
        _shard(host, question, partition),
        host.model,
        host.task,
        host.config,
        host.layout,
        host.device,
        host.tuned,
        _teacher(host, question),
        host.train,
        host.said,
        own,
        host.lends,
    )


def _shard(host: Host, question: Question, partition: int) -> Shard:
    """What everybody is asked about does not take the room of what a cohort trains on."""
    if KINDS[question.kind].asks == "cohort":
        return host.shards[partition]
    return shard_once(host.shards, partition)


def _leaving(host: Host, question: Question, client: ClientContext, given: Answer) -> Answer:
    """What of an answer leaves its client, with the noise that hides it."""
    form = _form(host, question)
    most = most_votes(question, host.config, form, host.layout)
    given = leaving(given, question, host.config, most)
    if noises_itself(question.kind, host.config):
        q = question
        what = f"metrics {q.part} {q.candidates} {digest(q.rungs)} {digest(q.given)}"
        source = source_for(question, host.config, client.partition, what)
        given = replace(given, totals=noised_means(given.totals, host.config, source))
    if not KINDS[question.kind].changes:
        return given
    if host.config.error_feedback:
        given = with_kept_back(given, question, client.memory)
    return on_own_choice(given, question, host.config, host.layout)


def _given(
    client: ClientContext, question: Question, limit: float, work: Callable[[], Answer]
) -> Answer:
    """What a client answers; zeros, if its code fails and noise is to hide what it would say.

    A failure would tell. Of --dp example these are means alone: each example that fails counts as 0
    by itself (`fedprune.client.dp_sgd`), as the noise that the client adds is not to be left out.

    Raises:
        Exception: whatever the client's code raises, if nothing hides it; Refused, which is about
            the question and is public, in any case.
    """
    try:
        return guarded(work, limit)
    except Exception as error:
        c = client.config
        bounded = c.dp == "client" and KINDS[question.kind].asks == "cohort"
        if isinstance(error, Refused) or not (bounded or noised_metrics(question.kind, c)):
            raise
        warn_once(error, "zeros leave each client whose code does", client.said)
        return _zeros(form_of(question, c, client.layout))


def _zeros(form: Form) -> Answer:
    votes = torch.zeros(form.voters, dtype=torch.bool) if form.voters else None
    beside = torch.zeros(form.statistics) if form.statistics else None
    totals = dict.fromkeys(form.totals, 0.0)
    return Answer(torch.zeros(form.values), 1.0, {**totals, "count": 0.0}, votes, beside)


def encoded(host: Host, question: Question, partition: int, meant: Answer) -> Packet:
    """An answer in the types of the wire; the same bits whoever encodes it, and when."""
    c = host.config
    own = _form(host, question).own
    wire = c.uplink or c.wire
    rounds = wire in BITS
    gen = generator(c.seed, "rounding", question.round, partition) if rounds else None
    fixed = hides(c)
    return encode_answer(meant, question, wire, c.score_wire, own=own, gen=gen, fixed=fixed)


def _teacher(host: Host, question: Question) -> nn.Module | None:
    """The model to learn from, built once; the one before is let go of."""
    if not question.teacher:
        return None
    name = digest_of(question.teacher)
    if name not in host.teachers:
        host.teachers.clear()
        model = teacher_model(question.teacher, host.config)
        host.teachers[name] = model.to(host.device)
    return host.teachers[name]
