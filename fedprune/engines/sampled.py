"""An engine that asks one client of many, and takes its answer for everyone's: to estimate a run.

The client trains one step instead of all; where chance draws the examples of every step
(``--dp example``), all of them, since one draw says little. What a question weighs is counted for
everyone who is asked, what an answer weighs by this one; seconds and operations by how much more
data and how many more steps the others have. Of secure sums every client takes part, each with one
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedprune.client.footprint import Footprint
from fedprune.client.host import Host, labels_of
from fedprune.client.memory import ClientMemory, memory_of
from fedprune.client.serving import serve
from fedprune.config import RunConfig, with_values
from fedprune.engines.choosing import step_count
from fedprune.protocol.aggregate import Aggregate, count_type
from fedprune.protocol.broadcast import broadcast
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Port
from fedprune.tasks.later import Counted, rows_counted
from fedprune.tasks.shards import data_digest

TRIED = 3
"""Clients that are asked one after the other until one answers."""


@dataclass
class Meter:
    """What the clients of a run would take.

    Attributes:
        seconds: of a processor, all clients together.
        flops: floating-point operations of all of them: multiplications and additions.
        spent: seconds that were taken to find out.
        phases: questions that were put.
        counted: operations and examples or steps they are for, by kind of question.
    """

    seconds: float = 0.0
    flops: float = 0.0
    spent: float = 0.0
    phases: int = 0
    counted: dict[tuple[object, ...], float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sampling:
    """How clients are asked: by a host that serves them, one step of training each.

    Unless chance has `drawn` the examples: then the client trains all steps, each of as many
    examples as chance draws from its shard.
    """

    host: Host
    config: RunConfig
    takes: Footprint
    rows: Mapping[int, Counted]
    meter: Meter
    drawn: bool
    memory: ClientMemory = field(default_factory=ClientMemory)


def sampled_port(host: Host, takes: Footprint, meter: Meter) -> Port:
    """A port whose clients are estimated by one of them.

    What one client takes is known (`fedprune.client.footprint`); what all would take is written
    down in `meter`.
    """
    labels = labels_of(host)
    drawn = host.config.dp == "example" and host.config.secure == "none"
    steps = host.config.local_steps if drawn else 1
    short = with_values(host.config, {"local_steps": steps, "local_epochs": 0, "batched": 1})
    own = replace(host, config=short, newest=[], rebuilt={})
    s = _Sampling(own, host.config, takes, rows_counted(host.shards), meter, drawn)
    secure = _secure(s) if host.config.secure != "none" else None

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        began = time.process_time()
        try:
            return (secure or _asked)(s, question, partitions)
        finally:
            meter.spent += time.process_time() - began
            meter.phases += 1

    return Port(ask, lambda: labels, rehearsed=True, data=lambda: data_digest(host.shards))


_Asking = Callable[[_Sampling, Question, Sequence[int]], Aggregate]


def _secure(s: _Sampling) -> _Asking:
    from fedprune.engines.inline_sums import inline_sums

    put = inline_sums(s.host)

    def asked(s: _Sampling, question: Question, partitions: Sequence[int]) -> Aggregate:
        began = time.process_time()
        found = put(question, partitions)
        s.meter.seconds += time.process_time() - began
        if question.kind == "tune":
            more = sum(_steps(s, p) - 1 for p in partitions)
            s.meter.seconds += s.takes.step * more
        if partitions:
            s.meter.flops += _flops(s, question, partitions[0]) * _times(s, question, partitions)
        return found

    return asked


def _asked(s: _Sampling, question: Question, partitions: Sequence[int]) -> Aggregate:
    sent = broadcast(question, s.host.config.wire, here=True)
    if not partitions:
        return Aggregate(bytes_down=sent.size(partitions))
    found, who = Aggregate(), partitions[0]
    for who in _middle(partitions, s.rows):
        flops = _flops(s, question, who)
        began = time.process_time()
        found = serve(s.host, sent.packet([who]), [who], memory=s.memory)
        seconds = time.process_time() - began
        if found.answered:
            break
    if not found.answered:  # their failures are everyone's
        every = serve(s.host, sent.packet(partitions), partitions, memory=s.memory)
        return replace(every, bytes_down=sent.size(partitions))
    _remembered(s, question, who, partitions)
    s.meter.flops += flops * _times(s, question, partitions, who)
    if question.kind == "tune" and not s.drawn:
        s.meter.seconds += sum(seconds + s.takes.step * (_steps(s, p) - 1) for p in partitions)
    else:
        s.meter.seconds += seconds * _times(s, question, partitions, who)
    return replace(_everyones(found, partitions), bytes_down=sent.size(partitions))


def _middle(partitions: Sequence[int], rows: Mapping[int, Counted]) -> list[int]:
    """The partitions of middling size, the one in the middle first."""
    order = sorted(partitions, key=lambda p: rows[p].train)
    middle = order[len(order) // 2]
    return [middle, *[p for p in order if p != middle]][:TRIED]


def _steps(s: _Sampling, partition: int) -> int:
    return step_count(s.config, s.rows[partition].train)


def _size(s: _Sampling, question: Question, partition: int) -> float:
    """How much of a client's work such a question is: steps, examples, or both."""
    its = s.rows[partition]
    if question.kind == "tune":
        return float(_steps(s, partition) * (its.train if s.drawn else 1))
    if question.kind == "score":
        return float(min(its.train, s.config.score_examples or its.train) or 1)
    return float((its.test if question.part == "test" else its.validation) or 1)


def _times(
    s: _Sampling, question: Question, partitions: Sequence[int], who: int | None = None
) -> float:
    """How many times the work of one client, of one step if it trains, all of them do."""
    step = question.kind == "tune" and not s.drawn
    one = 1.0 if step else _size(s, question, partitions[0] if who is None else who)
    return sum(_size(s, question, p) for p in partitions) / one


def _flops(s: _Sampling, question: Question, who: int) -> float:
    """Operations of one client, counted once for each kind of question about a model."""
    key = (question.kind, question.ask, question.score, question.part, question.edits)
    if key not in s.meter.counted:
        sent = broadcast(replace(question, counted={}), s.host.config.wire, here=True)
        open_ = replace(s.host, config=s.host.config.model_copy(update={"secure": "none"}))
        with FlopCounterMode(display=False) as counter:
            serve(replace(open_, newest=[]), sent.packet([who]), [who], memory=ClientMemory())
        s.meter.counted[key] = float(counter.get_total_flops())
    return s.meter.counted[key]


def _remembered(s: _Sampling, question: Question, who: int, partitions: Sequence[int]) -> None:
    """Let everyone remember what the one who was asked does."""
    of, held = memory_of(question, s.host.config), s.memory.held
    if of and (of, who) in held:
        newest = {question.round: held[of, who].get(question.round, b"")}
        for p in partitions:
            if p != who and newest[question.round]:
                held[of, p] = dict(newest)


def _everyones(one: Aggregate, partitions: Sequence[int]) -> Aggregate:
    """One client's answer as the sum of so many like it."""
    n = len(partitions)

    def times(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor * n

    return replace(
        one,
        total=times(one.total),
        weight=one.weight * n,
        totals={name: value * n for name, value in one.totals.items()},
        votes=None if one.votes is None else one.votes.to(count_type(n)) * n,
        answered=tuple(sorted(partitions)),
        bytes_up=one.bytes_up * n,
        statistics=times(one.statistics),
        held=times(one.held),
        singles=None if one.singles is None else one.singles.repeat(n, 1),
        norms=one.norms * n,
        loud=(),
    )
