"""Packets over a Flower grid: send each to its node, and see what comes back as it comes."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedprune.codec.wire import Packet
from fedprune.engines.flower.announced import networked
from fedprune.engines.flower.messages import Copies, let_go, packet_in, records
from fedprune.engines.flower.waiting import Waiting, error_said, left_on
from fedprune.options.refusal import Refused
from fedprune.protocol.failures import plain

Called = TypeVar("Called")

log = logging.getLogger("fedprune")

POLL = {True: (0.05, 0.05), False: (0.25, 2.0)}
"""Seconds between looks for replies, at least and at most: in a simulation, and on devices, where a
look is a request."""

LOOK_SHARE = 0.1
"""Of the time that a question has taken so far, what passes before the next look: a reply is
noticed so much later at the most, and a question of minutes is not some hundreds of requests."""

ROLL_CALL = 5.0
"""Seconds between looks at which nodes are still there, while replies are awaited."""


@dataclass(frozen=True)
class Lost:
    """Why nothing came back from a node.

    Attributes:
        reason: one line.
        sent: whether the question may have reached it.
        left: the node is no longer there, so that asking again is of no use.
        late: nothing came in the time that there was.
        alone: it had been asked with nobody else at work beside it, so that once more is of no use.
        spare: enough others were faster, so that it is no failure.
        came: bytes of a reply that came all the same.
    """

    reason: str
    sent: bool = True
    left: bool = False
    late: bool = False
    alone: bool = False
    spare: bool = False
    came: int = 0


WORKER_LOST, WORKER_KILLED = 301, 302
"""Codes of errors in a simulation: a worker was lost; it was killed for want of memory, alone."""

MISSING = Lost("lacks the mask or the configuration")

Incoming = Packet | Refused | Lost
"""What came back: a packet, something that is none, or nothing."""

OutgoingKey = tuple[int, int]
"""What a packet was sent under: which of the requests that are put together, and which host."""


@dataclass(frozen=True)
class Outgoing:
    """A packet for a node.

    Attributes:
        node: Flower's id of it.
        message_type: Flower's, which names the client's function.
        packet: what is sent.
        most: bytes that the reply may have.
    """

    node: int
    message_type: str
    packet: Packet
    most: int = 0


TOGETHER = 2**25
"""Bytes that replies which are taken from a SuperLink at once may have together: Flower gives all
that have come, whole. A reply that may have more is taken by itself, and read before the next."""

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
"""Seconds between tries of what a busy SuperLink could not do, such as "database is locked"."""


def patiently(call: Callable[[], Called]) -> Called:
    """What a call of the grid gives; tried again where the SuperLink failed (HTTP 500 and up)."""
    for pause in PAUSES:
        try:
            return call()
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", 0) < 500:
                raise
            log.warning("the SuperLink failed (%s); again in %g s", plain(error), pause)
            time.sleep(pause)
    return call()


@dataclass
class Pending:
    """Packets that were sent to nodes, each under a key, and not answered yet."""

    grid: Grid
    awaited: dict[str, OutgoingKey] = field(default_factory=dict)
    _most: dict[str, int] = field(default_factory=dict)
    _copies: Copies = field(default_factory=dict)

    def send(self, key: OutgoingKey, mail: Outgoing) -> bool:
        """Send a packet; False where Flower does not take it: no such node."""
        # Flower's grid in memory keeps the message itself, until a node takes it.
        leaves = networked(self.grid)
        copies = None if leaves else self._copies
        message = Message(records(mail.packet, copies), mail.node, mail.message_type)
        sent = patiently(lambda: list(self.grid.push_messages([message])))
        if leaves or hasattr(self.grid, "clock"):  # our own, which has taken it apart by now
            let_go(message)
        if not sent or not sent[0]:
            return False
        self.awaited[sent[0]] = key
        self._most[sent[0]] = mail.most
        return True

    def replies(self) -> Iterator[tuple[OutgoingKey, Incoming]]:
        """What has come since the last look, of large replies one after the other."""
        for some in list(self._parts()):
            came = deque(patiently(functools.partial(self.grid.pull_messages, some)))
            while came:
                message = came.popleft()
                key = self.awaited.pop(message.metadata.reply_to_message_id, None)
                if key is not None:
                    yield key, reply_in(message)

    def _parts(self) -> Iterator[list[str]]:
        """What is awaited, in parts that are taken at once."""
        part: list[str] = []
        size, bounded = 0, networked(self.grid)
        for name in self.awaited:
            if part and bounded and size + self._most[name] > TOGETHER:
                yield part
                part, size = [], 0
            part.append(name)
            size += self._most[name]
        if part:
            yield part

    def forget(self, key: OutgoingKey) -> None:
        """Await no reply for this key any longer."""
        self.awaited = {sent: k for sent, k in self.awaited.items() if k != key}


def clock_of(grid: Grid) -> float:
    """Seconds by the grid's own clock, if it has one."""
    return float(getattr(grid, "clock", time.monotonic)())


def exchange(
    grid: Grid,
    mail: Mapping[OutgoingKey, Outgoing],
    timeout: float | Waiting,
    poll: tuple[float, float],
    wanted: Callable[[OutgoingKey], bool] = lambda _: True,
) -> Iterator[tuple[OutgoingKey, Incoming]]:
    """Send every packet and yield what comes back, in order of arrival.

    Args:
        grid: Flower's grid.
        mail: what is sent, under which keys.
        timeout: seconds to wait from now on, or what decides; what has not come then is lost.
        poll: seconds between looks for replies, at least and at most.
        wanted: whether a reply would still count; where not, it is lost and not waited for.

    Yields:
        Every key once, with its reply.
    """
    pending = Pending(grid)
    yield from _not_sent(pending, mail, wanted)
    least, most = poll
    began = called = clock_of(grid)
    over = ""
    waiting = timeout if isinstance(timeout, Waiting) else Waiting(called, timeout)
    while pending.awaited and not over:
        yield from _come(pending, waiting, wanted)
        if pending.awaited and clock_of(grid) > called + ROLL_CALL:
            called = clock_of(grid)
            yield from _left(pending, mail)
        over = waiting.over(clock_of(grid), {mail[k].node for k in pending.awaited.values()})
        # A grid with a clock of its own waits for replies itself.
        if pending.awaited and not over and not hasattr(grid, "clock"):
            time.sleep(min(most, max(least, LOOK_SHARE * (clock_of(grid) - began))))
    if pending.awaited and hasattr(grid, "forget"):
        grid.forget(list(pending.awaited))
    for key in list(pending.awaited.values()):
        yield key, Lost(over, late=True)


def _not_sent(
    pending: Pending, mail: Mapping[OutgoingKey, Outgoing], wanted: Callable[[OutgoingKey], bool]
) -> Iterator[tuple[OutgoingKey, Incoming]]:
    """Send every packet; those that are not sent, with the reason."""
    for key, each in mail.items():
        if not wanted(key):
            yield key, _spare(sent=False)
        elif not pending.send(key, each):
            yield key, Lost("could not be reached", sent=False)


def _come(
    pending: Pending, waiting: Waiting, wanted: Callable[[OutgoingKey], bool]
) -> Iterator[tuple[OutgoingKey, Incoming]]:
    """What has come since the last look, and those of which nothing is wanted any more."""
    for key, reply in pending.replies():
        if isinstance(reply, Packet):
            waiting.took.append(clock_of(pending.grid) - waiting.began)
        yield key, reply if wanted(key) else _spare(reply)
        del reply  # it is not kept while the next one is taken
    for key in [k for k in pending.awaited.values() if not wanted(k)]:
        pending.forget(key)
        yield key, _spare()


def _spare(reply: Incoming | None = None, *, sent: bool = True) -> Lost:
    came = reply.size() if isinstance(reply, Packet) else 0
    return Lost("enough others were faster", sent=sent, spare=True, came=came)


def _left(
    pending: Pending, mail: Mapping[OutgoingKey, Outgoing]
) -> Iterator[tuple[OutgoingKey, Incoming]]:
    """Those awaited whose node is no longer there."""
    there = set(patiently(pending.grid.get_node_ids))
    for key in [k for k in pending.awaited.values() if mail[k].node not in there]:
        pending.forget(key)
        yield key, Lost(left_on(pending.grid), left=True)


def reply_in(message: Message) -> Incoming:
    """The packet in a message, or why there is none."""
    if message.has_error():
        return Lost(error_said(message.error), alone=message.error.code == WORKER_KILLED)
    try:
        return packet_in(message)
    except Exception as error:  # whatever a stranger's message raises is a refusal of it
        return Refused("reply", plain(f"malformed: {error!r}"))
