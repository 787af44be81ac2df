"""Serving: a question is put to partitions of a host, and their answers are added up.

Every answer is cast, encoded, counted, decoded and checked as if it had come from a device of its
own, and what leaves the host is one sum, taken in the order of the partitions.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from fedprune.client.answers import VARIATE, answer
from fedprune.client.batched import answers_together
from fedprune.client.context import ClientContext, warn_once
from fedprune.client.host import Host, with_edits
from fedprune.client.memory import (
    ClientMemory,
    Recollection,
    keep,
    keeps,
    memory_of,
    recall,
)
from fedprune.client.teacher import teacher_model
from fedprune.codec.model_digest import edits_in
from fedprune.codec.wire import Packet, digest_of
from fedprune.config.kinds import KINDS
from fedprune.learning.variates import own_variate, parameters_in
from fedprune.options.refusal import Refused
from fedprune.protocol.client_privacy import (
    hides,
    leaving,
    noised_means,
    noised_metrics,
    noises_itself,
    silenced,
)
from fedprune.protocol.coded_answers import encode_answer
from fedprune.protocol.forms import Form, form_of
from fedprune.protocol.messages import Aggregate, Answer, Question
from fedprune.protocol.noise import source_for
from fedprune.protocol.parts import PartitionPart, failure_of, understood, with_part
from fedprune.protocol.questions import decode_question
from fedprune.protocol.releases import most_votes
from fedprune.randomness import generator
from fedprune.runtime.guarding import allowance, guarded
from fedprune.runtime.process import one_thread
from fedprune.tensors import Tensors, digest, gathered, reset, scattered

Tick = Callable[[int], None]
"""Told how many more partitions have answered, or failed."""


def serve(
    host: Host,
    packet: Packet,
    partitions: Sequence[int],
    tick: Tick | None = None,
    memory: ClientMemory | None = None,
) -> Aggregate:
    """The sum of the partitions' answers; a partition that fails is left out and named.

    What they remember is recalled from `memory` and kept there; by default nothing is there.

    Raises:
        ValueError: the configuration promises secure sums, and this one would be in the open.
    """
    _in_the_open(host)
    asked = _asked(host, packet, memory)
    total = Aggregate()
    for part in _parts(asked, partitions):
        total = with_part(part, asked.question, asked.form, host.config, total)
        del part  # what one client sent is not kept while the next one tunes
        if tick:
            tick(1)
    return total


def _in_the_open(host: Host) -> None:
    if host.config.secure != "none":
        raise ValueError(f"secure={host.config.secure}: asked for an answer in the open")


def parts_of(
    host: Host, packet: Packet, partitions: Sequence[int], memory: ClientMemory | None = None
) -> list[PartitionPart]:
    """What each of the partitions sends, in their order: what a device answers.

    Raises:
        ValueError: as for `serve`.
    """
    _in_the_open(host)
    asked = _asked(host, packet, memory)
    return list(_parts(asked, partitions))


def sum_of(host: Host, packet: Packet, parts: Sequence[PartitionPart]) -> Aggregate:
    """The sum that `serve` gives, of parts that are there already."""
    asked = _asked(host, packet)
    total = Aggregate()
    for part in parts:
        total = with_part(part, asked.question, asked.form, host.config, total)
    return total


@dataclass(frozen=True)
class _Asked:
    """A question as a host serves it: the model that it is about, and the form of its answers.

    Attributes:
        host: around that model.
        question: what is asked.
        form: of the answers.
        seconds: how long a partition may take, by how many are still to answer.
        memory: what its partitions remember.
    """

    host: Host
    question: Question
    form: Form
    seconds: Callable[[int], float]
    memory: ClientMemory


def _asked(host: Host, packet: Packet, memory: ClientMemory | None = None) -> _Asked:
    host = with_edits(host, edits_in(packet["bits"]))
    question, form = _read(host, packet)
    seconds = allowance(host.config.timeout)
    return _Asked(host, question, form, seconds, memory or ClientMemory())


def _read(host: Host, packet: Packet) -> tuple[Question, Form]:
    """The question in a packet and the form of its answers, kept as long as the packet is there.

    In one process every host is sent the same one.
    """
    newest = host.newest
    if not newest or newest[0]() is not packet:
        question = decode_question(packet, host.layout, host.base)
        form = form_of(question, host.config, host.layout)
        newest[:] = [weakref.ref(packet, lambda _: newest.clear()), question, form]
    return newest[1], newest[2]


def _form(host: Host, question: Question) -> Form:
    """The form of the answers to a question, at hand for the newest one."""
    newest = host.newest
    if newest and newest[1] is question:
        return cast(Form, newest[2])
    return form_of(question, host.config, host.layout)


def _parts(asked: _Asked, partitions: Sequence[int]) -> Iterator[PartitionPart]:
    """What each of the partitions sends, in their order; so many of them are computed at once."""
    size, left = asked.host.config.batched, len(partitions)
    for begin in range(0, len(partitions), size):
        some = partitions[begin : begin + size]
        begun = _begun(asked, some) if len(some) > 1 else {}
        for partition in some:
            yield _part(asked, partition, left, begun.get(partition))
            left -= 1


@dataclass(frozen=True)
class _Begun:
    """A partition whose answer was computed with others.

    Attributes:
        own: what it remembers, and where it kept what it is to remember.
        finish: gives its answer.
    """

    own: Recollection
    finish: Callable[[], Answer]


def _begun(asked: _Asked, partitions: Sequence[int]) -> dict[int, _Begun]:
    """What was computed at once; nothing where that failed, so that who fails does so alone."""
    host, question = asked.host, asked.question
    reset(host.model, host.counters)
    try:
        own = {p: _recollection(asked, p) for p in partitions}
        clients = [_client(host, question, p, own[p]) for p in partitions]
        with one_thread():
            found = guarded(lambda: answers_together(question, clients), asked.seconds(2))
        return {p: _Begun(own[p], finish) for p, finish in found.items()}
    except Exception as error:  # of one client's data, perhaps: then the others must not stop
        warn_once(error, "those that were to be computed with it are, one by one", host.said)
        return {}


def _part(asked: _Asked, partition: int, left: int, begun: _Begun | None) -> PartitionPart:
    """What a partition sends, with as many of the host's still to answer, itself included."""
    host, question = asked.host, asked.question
    try:
        own = begun.own if begun else _recollection(asked, partition)
        finish = begun.finish if begun else None
        meant = answered(host, question, partition, asked.seconds(left), own, finish)
        packet = encoded(host, question, partition, meant)
        if keeps(question, host.config):
            _keep(asked, partition, own, meant, packet)
        return PartitionPart(partition, packet)
    except Exception as error:  # whatever a client's code raises must not stop the others
        failure = failure_of(partition, question.kind, error)
        failure = silenced(failure, host.config, error)
        return PartitionPart(partition, failure=failure)


def _recollection(asked: _Asked, partition: int) -> Recollection:
    """What a partition kept in the round that counted last."""
    of = memory_of(asked.question, asked.host.config)
    if not of:
        return Recollection()
    at = asked.question.counted.get(partition, 0)
    return Recollection(recall(asked.memory, of, partition, at))


def _keep(asked: _Asked, partition: int, own: Recollection, meant: Answer, packet: Packet) -> None:
    """Keep what a partition remembers now; with an answer that will be refused, nothing."""
    question, config = asked.question, asked.host.config
    try:
        given = understood(packet, question, asked.form)
    except Refused:
        return
    if config.error_feedback and KINDS[question.kind].changes:
        own.keep(RESIDUAL, _by_name(question, meant.values - given.values))
    if config.scaffold and KINDS[question.kind].changes:
        own.keep(VARIATE, _variate(asked, own, given))
    of, since = memory_of(question, config), question.counted.get(partition, 0)
    keep(asked.memory, of, partition, question.round, since, own.whole)


def released(host: Host, question: Question, partition: int) -> Packet:
    """What one partition sends: its answer, encoded."""
    return encoded(host, question, partition, answered(host, question, partition))


RESIDUAL = "residual"
"""What error feedback remembers.

Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2: the client
sends C(d + e) and keeps e = d + e - C(d + e). So the sum of all it sent and what it keeps is the
sum of all it meant.
"""


def _variate(asked: _Asked, own: Recollection, given: Answer) -> Tensors:
    """The control variate of a client whose change is understood like that."""
    question, statistics = asked.question, asked.host.layout.statistics
    moved = parameters_in(_by_name(question, given.values), statistics)
    span = asked.host.config.local_steps * question.lr
    return own_variate(own.recall(VARIATE), question.given, moved, question.masks, span)


def _by_name(question: Question, flat: Tensor) -> Tensors:
    """A change of the weights, or what was not sent of one."""
    shapes = {name: w.shape for name, w in question.weights.items()}
    return scattered(flat, shapes, question.masks)


def _with_kept_back(answer: Answer, question: Question, own: Recollection) -> Answer:
    """A change with what was kept back before, but for weights that were removed since."""
    before = own.recall(RESIDUAL)
    if not before:
        return answer
    return replace(answer, values=answer.values + gathered(before, question.masks))


def answered(
    host: Host,
    question: Question,
    partition: int,
    seconds: float | None = None,
    own: Recollection | None = None,
    finish: Callable[[], Answer] | None = None,
) -> Answer:
    """One partition's answer; of a change with what it kept back before, where it does that.

    Args:
        host: where it is served.
        question: what is asked.
        partition: who answers.
        seconds: how long it may take.
        own: what it remembers, and where it keeps what it is to remember.
        finish: gives what was computed with others'; None: it computes by itself.

    Raises:
        RuntimeError: it took longer than so many seconds, by default half of the phase's.
    """
    limit = host.config.timeout / 2 if seconds is None else seconds
    reset(host.model, host.counters)
    with one_thread():
        client = _client(host, question, partition, own or Recollection())
        given = _given(client, question, limit, finish or (lambda: answer(question, client)))
        return _leaving(host, question, client, given)


def _client(host: Host, question: Question, partition: int, own: Recollection) -> ClientContext:
    return ClientContext(
        partition,
        host.shards[partition],
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
    )


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
    if not host.config.error_feedback or not KINDS[question.kind].changes:
        return given
    return _with_kept_back(given, question, client.memory)


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
    gen = generator(c.seed, "rounding", question.round, partition)
    wire = c.uplink or c.wire
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
