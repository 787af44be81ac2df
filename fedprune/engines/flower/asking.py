"""A request to every host of a fleet, once more where nothing came, and what was said to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from fedprune.client.serving import Tick
from fedprune.codec.wire import Packet
from fedprune.config.cohort import first_counting
from fedprune.config.kinds import KINDS
from fedprune.engines.flower.exchange import (
    MISSING,
    POLL,
    Incoming,
    Lost,
    Outgoing,
    OutgoingKey,
    clock_of,
    exchange,
)
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.holders import Assignment
from fedprune.engines.flower.waiting import Waiting
from fedprune.options.refusal import Refused
from fedprune.protocol.failures import Failure
from fedprune.protocol.held_weights import BASE
from fedprune.protocol.replies import identity, question_name, unnamed

Said = TypeVar("Said")
"""What a reply says."""


@dataclass(frozen=True)
class Request(Generic[Said]):
    """What every host is asked, and how its reply is read.

    Attributes:
        message_type: Flower's, which names the client's function.
        phase: what a host that fails has failed at.
        packet: what the host of some partitions is sent, with or without what a device has already.
        read: what a reply of the host of some partitions says; raises Refused.
        weight: bytes of a packet that was sent to the host of some partitions, maybe once more.
        alone: bytes of a packet that no other holds.
        most: bytes that the reply of the host of some partitions may have; 0: few.
    """

    message_type: str
    phase: str
    packet: Callable[[list[int], bool], Packet]
    read: Callable[[Packet, list[int]], Said]
    weight: Callable[[Packet, list[int], bool], int]
    alone: Callable[[Packet], int] = lambda _: 0
    most: Callable[[list[int]], int] = lambda _: 0


ON_THE_WAY = 2**30
"""Bytes that packets on their way may hold, each for itself; what is more waits for the others."""


def ask(askings: Sequence[Asking[Any]], *, again: bool, tick: Tick | None = None) -> None:
    """Put requests side by side to those that have not replied yet.

    A device is sent them without what it has already, unless it is asked `again`. One deadline
    holds for both times together: what was late is not asked again. `tick` is told how many more
    partitions have replied.
    """
    mail: dict[OutgoingKey, Outgoing] = {}
    size = 0
    for i, asking in enumerate(askings):
        if again and asking.waiting().over(clock_of(asking.fleet.grid), frozenset()):
            continue
        for k, each in asking.mail(again=again):
            mail[i, k] = each
            size += asking.request.alone(each.packet)
            if size > ON_THE_WAY:
                _exchanged(askings, mail, again=again, tick=tick)
                mail, size = {}, 0
    _exchanged(askings, mail, again=again, tick=tick)


def _exchanged(
    askings: Sequence[Asking[Any]],
    mail: Mapping[OutgoingKey, Outgoing],
    *,
    again: bool,
    tick: Tick | None,
) -> None:
    if not mail:
        return
    fleet, wanted = askings[0].fleet, _wanted(askings)
    waiting = askings[0].waiting(mail)
    for (i, k), reply in exchange(fleet.grid, mail, waiting, POLL[fleet.simulated()], wanted):
        fleet.heard(mail[i, k].node, reply, askings[i].request.phase)
        came = askings[i].hear(k, mail[i, k].packet, reply, again=again)
        del reply  # it is not kept while the next one is taken
        if tick and came:
            tick(came)
    fleet.took(askings[0].request.phase, waiting.took)


def _wanted(askings: Sequence[Asking[Any]]) -> Callable[[OutgoingKey], bool]:
    """Whether a reply would still count, by what was asked, where more are asked than count."""
    fleet, phases = askings[0].fleet, [asking.request.phase for asking in askings]
    many = fleet.config.engine == "flower" and fleet.config.secure == "none"
    most = first_counting(fleet.config, phases) if many else None
    limited = [most is not None and KINDS[phase].asks == "cohort" for phase in phases]

    def wanted(key: OutgoingKey) -> bool:
        those = [asking.came for asking, its in zip(askings, limited, strict=True) if its]
        return not limited[key[0]] or sum(those) < (most or 0)

    return wanted


@dataclass
class Asking(Generic[Said]):
    """One request to every host, and what has come of it so far.

    What a host says is taken as soon as it is its turn, and not kept; who is ahead of it waits.

    Attributes:
        fleet: who is there.
        request: what is asked.
        assignments: who is asked for what, by the host's place in the sum.
        take: told, in the order of these places, which partitions were asked and what was said; of
            a host that said nothing that counts, its partitions as failed.
        outcomes: what was said and not taken yet, a reply that does not count, or why there is
            none; by that place.
        down: bytes that were sent, as the request weighs them.
        came: partitions that have replied.
        unused: bytes of replies that came after enough others.
        spare: partitions of those.
        began: when it was first put, by the grid's clock.
    """

    fleet: Fleet
    request: Request[Said]
    assignments: dict[int, Assignment]
    take: Callable[[list[int], Said | tuple[Failure, ...]], None]
    outcomes: dict[int, Said | Refused | Lost] = field(default_factory=dict)
    down: int = 0
    came: int = 0
    unused: int = 0
    spare: list[int] = field(default_factory=list)
    began: float = field(init=False)
    _turns: deque[int] = field(init=False)
    _taken: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._turns = deque(self.assignments)
        self.began = clock_of(self.fleet.grid)

    def waiting(self, mail: Mapping[OutgoingKey, Outgoing] = MappingProxyType({})) -> Waiting:
        """How long replies are waited for, to what is sent now."""
        size = max((each.packet.size() for each in mail.values()), default=0)
        asked = frozenset(each.node for each in mail.values())
        return self.fleet.waiting(self.request.phase, self.began, size, asked)

    def mail(self, *, again: bool) -> Iterator[tuple[int, Outgoing]]:
        """What is sent to those that have not replied yet, by their place in the sum."""
        fleet, lean = self.fleet, not self.fleet.simulated() and not again
        named = {"config": "" if lean else fleet.text, "config_id": identity(fleet.text)}
        for k, (node, group) in self.assignments.items():
            # One of a host's partitions may be known to break it.
            risky = len(group) > 1 and not fleet.breaking.isdisjoint(group)
            if node is not None and self._worth_asking(k) and not risky:
                request = self.request
                sent = request.packet(group, lean)
                sent = replace(sent, fields={**sent.fields, "partitions": group, **named})
                yield k, Outgoing(node, request.message_type, sent, request.most(group))

    def hear(self, k: int, sent: Packet, reply: Incoming, *, again: bool) -> int:
        """Take in what came of a packet: how many partitions have replied with it."""
        group = self.assignments[k][1]
        if not isinstance(reply, Lost) or reply.sent:
            self.down += self.request.weight(sent, group, again)
        if isinstance(reply, Lost) and reply.spare:
            # Enough others were faster; who has failed before has failed all the same.
            self.unused += reply.came
            if self.outcomes.get(k, MISSING) is MISSING:
                self.outcomes[k] = reply
                self.spare.extend(group)
            self.go_on()
            return 0
        self.outcomes[k] = outcome = self._understood(sent, reply, group)
        came = 0 if isinstance(outcome, Refused | Lost) else len(group)
        self.came += came
        del outcome
        self.go_on()
        return came

    def go_on(self, *, over: bool = False) -> None:
        """Let those be taken whose turn it is; when it is `over`, as nobody is asked again, all."""
        while self._turns:
            nobody = self.assignments[k := self._turns[0]][0] is None
            if not (over or nobody or not self.unanswered(k)):
                return
            self._turns.popleft()
            group, said = self.assignments[k][1], self._said(k)
            self.outcomes.pop(k, None)
            self._taken.add(k)
            self.take(group, said)
            del said  # it is not kept while the next one is on its way

    def _understood(self, sent: Packet, reply: Incoming, group: list[int]) -> Said | Refused | Lost:
        if not isinstance(reply, Packet):
            return reply
        reply, name = unnamed(reply)
        if missing := reply.fields.get("missing"):
            self.fleet.lacking.update(group if missing == BASE else ())
            return MISSING
        if name != question_name(sent):
            return Refused("reply", "it answers another question than this one")
        try:
            return self.request.read(reply, group)
        except Refused as refused:
            return refused

    def unanswered(self, k: int) -> bool:
        """Whether nothing came from a host that is still there."""
        outcome = self.outcomes.get(k)
        if outcome is None:
            return k not in self._taken
        return isinstance(outcome, Lost) and not outcome.left

    def _worth_asking(self, k: int) -> bool:
        outcome = self.outcomes.get(k)
        vain = isinstance(outcome, Lost) and (outcome.alone or outcome.late or outcome.spare)
        return self.unanswered(k) and not vain

    def late(self, k: int) -> bool:
        """Whether nothing came in time."""
        outcome = self.outcomes.get(k)
        return isinstance(outcome, Lost) and outcome.late

    def _said(self, k: int) -> Said | tuple[Failure, ...]:
        group = self.assignments[k][1]
        outcome = self.outcomes[k] if k in self.outcomes else self.fleet.absent(group)
        if not isinstance(outcome, Refused | Lost):
            return outcome
        name = outcome.field if isinstance(outcome, Refused) else ""
        reason = str(outcome) if isinstance(outcome, Refused) else outcome.reason
        spare = isinstance(outcome, Lost) and outcome.spare
        return tuple(Failure(p, self.request.phase, name, reason) for p in group if not spare)
