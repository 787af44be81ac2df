"""Serving: a question is put to partitions of a host, and their answers are added up.

Every answer is cast, encoded, counted, decoded and checked as if it had come from a device of its
own, and what leaves the host is one sum, taken in the order of the partitions.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedprune.client.batched import answers_together
from fedprune.client.context import warn_once
from fedprune.client.host import Host, with_edits
from fedprune.client.kept_back import remember_change
from fedprune.client.memory import ClientMemory, Recollection, keep, keeps, memory_of, recall
from fedprune.client.partition_answers import answered, client_of, encoded
from fedprune.codec.model_digest import edits_in
from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import decode_question
from fedprune.protocol.client_privacy import silenced
from fedprune.protocol.form import Form
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import PartitionPart, failure_of, understood, with_part
from fedprune.runtime.guarding import allowance, guarded, handlers
from fedprune.runtime.process import one_thread
from fedprune.structure.layout import Layout
from fedprune.tensors.models import reset

Tick = Callable[[int], None]  # Told how many more partitions have answered, or failed


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
    with handlers():
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
    """What each of the partitions sends, in their order: what a device answers."""
    _in_the_open(host)
    asked = _asked(host, packet, memory)
    with handlers():
        return list(_parts(asked, partitions))


def sum_of(host: Host, packet: Packet, parts: Sequence[PartitionPart]) -> Aggregate:
    """The sum that `serve` gives, of parts that are there already."""
    asked = _asked(host, packet)
    total = Aggregate()
    for part in parts:
        total = with_part(part, asked.question, asked.form, host.config, total)
    return total


def understood_question(host: Host, packet: Packet) -> tuple[Question, Form, Layout]:
    """The question in a packet, the form of its answers, and the layout that it is about."""
    asked = _asked(host, packet)
    return asked.question, asked.form, asked.host.layout


@dataclass(frozen=True)
class _Asked:
    """A question as a host serves it: the model that it is about, and the form of its answers."""

    host: Host  # around that model
    question: Question  # what is asked
    form: Form  # of the answers
    # how long a partition may take, by how many are still to answer
    seconds: Callable[[int], float]
    memory: ClientMemory  # what its partitions remember


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
    """A partition whose answer was computed with others."""

    own: Recollection  # what it remembers, and where it kept what it is to remember
    finish: Callable[[], Answer]  # gives its answer


def _begun(asked: _Asked, partitions: Sequence[int]) -> dict[int, _Begun]:
    """What was computed at once; nothing where that failed, so that who fails does so alone."""
    host, question = asked.host, asked.question
    reset(host.model, host.counters)
    try:
        own = {p: _recollection(asked, p) for p in partitions}
        clients = [client_of(host, question, p, own[p]) for p in partitions]
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
    remember_change(asked.host, question, own, meant, given)
    of, since = memory_of(question, config), question.counted.get(partition, 0)
    keep(asked.memory, of, partition, question.round, since, own.whole)
