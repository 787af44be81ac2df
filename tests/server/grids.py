"""A Flower grid without Flower's network: it calls the ClientApp in this process."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import fedprune.engines.flower.client_hosts
from fedprune import Result, RunConfig, federate
from fedprune.engines.flower import exchange, fleet
from fedprune.engines.flower.client_app import app
from fedprune.engines.flower.grid import grid_port

Meddle = Callable[[int, Message, Message], Message | None]


def honest(node: int, question: Message, reply: Message) -> Message:
    del node, question
    return reply


def at(node: int, kinds: str, change: Callable[[Message, Message], Message | None]) -> Meddle:
    """What changes the replies of a node to messages whose type begins so."""

    def meddle(asked: int, question: Message, reply: Message) -> Message | None:
        meant = asked == node and question.metadata.message_type.startswith(kinds)
        return change(question, reply) if meant else reply

    return meddle


def no_reply(_question: Message, _reply: Message) -> None:
    """Nothing comes back."""


def an_error(question: Message, _reply: Message) -> Message:
    """Flower says that it was lost."""
    return Message(Error(code=0, reason="lost"), reply_to=question)


@dataclass
class FakeGrid:
    """As much of Flower's Grid as the package uses.

    Attributes:
        contexts: the nodes that are there, each with what Flower keeps of it.
        meddle: may change a reply, or lose it (None).
        before: called with this grid before every look at who is there.
        asked: (node, message type, fields, names of buffers) of every message that was sent.
    """

    contexts: dict[int, Context]
    meddle: Meddle = honest
    before: Callable[["FakeGrid"], None] = lambda _: None
    asked: list[tuple[int, str, dict[str, Any], set[str]]] = field(default_factory=list)
    looks: int = 0
    _sent: dict[str, Message] = field(default_factory=dict)
    _count: int = 0

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        self.before(self)
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str | None:
        node = message.metadata.dst_node_id
        if node not in self.contexts:
            return None
        self._count += 1
        name = f"message-{self._count}"
        message.metadata.__dict__["_message_id"] = name
        self._sent[name] = message  # as Flower's grid in memory does
        content = message.content
        fields = dict(content.config_records["fields"])
        self.asked.append(
            (node, message.metadata.message_type, fields, set(content.array_records["buffers"]))
        )
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        # The newest first: whoever adds up in order of arrival would be found out.
        sent = [self._sent.pop(name) for name in reversed(list(message_ids)) if name in self._sent]
        return [reply for message in sent if (reply := self._reply(message)) is not None]

    def _reply(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        if node not in self.contexts:
            return None
        try:
            reply = delivered(app(delivered(message), self.contexts[node]))
        except Exception as error:  # as Flower does
            reply = Message(Error(code=0, reason=str(error)), reply_to=message)
        return self.meddle(node, message, reply)

    def kinds(self, node: int) -> list[str]:
        return [kind for i, kind, _, _ in self.asked if i == node]


class HttpGrid:
    """Flower's name for a grid over a network, around a grid of the tests.

    Attributes:
        pulled: how many replies were asked for at once, each time.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.pulled = inner, list[int]()

    def push_messages(self, messages: Iterable[Message]) -> Any:
        return self.inner.push_messages(map(delivered, messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Any:
        names = list(message_ids)
        self.pulled.append(len(names))
        return self.inner.pull_messages(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def delivered(message: Message) -> Message:
    """As Flower delivers it: with arrays of its own, of bytes."""
    other = copy.copy(message)
    records = dict(message.content)
    for name, record in message.content.array_records.items():
        arrays = {n: Array(a.dtype, a.shape, a.stype, bytes(a.data)) for n, a in record.items()}
        records[name] = ArrayRecord(arrays)
    for name, fields in message.content.config_records.items():
        own = type(fields) is ConfigRecord  # else one that has its content when it is sent
        records[name] = (
            ConfigRecord(dict(fields)) if own else ConfigRecord.inflate(fields.deflate())
        )
    other.content = RecordDict(records)
    return other


def context(node: int, **node_config: Any) -> Context:
    return Context(1, node, node_config, RecordDict(), {})


@dataclass
class Clock:
    """Time that passes only while somebody sleeps: waiting takes none, however busy the machine."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def in_one_process() -> Iterator[None]:
    """What lets several devices be in one process, each with a host of its own."""
    # Flower 1.41 makes no Message outside a task of its own.
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    build = fedprune.engines.flower.client_hosts._device_host.__wrapped__
    clock, hosts = Clock(), functools.lru_cache(maxsize=8)(build)
    with (
        patch.object(fedprune.engines.flower.client_hosts, "_device_host", hosts),
        patch.object(exchange, "time", clock),
        patch.object(fleet, "time", clock),
    ):
        yield


def workers(count: int, **rest: Any) -> FakeGrid:
    """A grid of a simulation's workers."""
    nodes = {90 - i: context(90 - i, **{"partition-id": i}) for i in range(count)}
    return FakeGrid(nodes, **rest)


def run_on(grid: Any, config: RunConfig, **rest: Any) -> Result:
    """A run to its end over a grid."""
    return federate(config, grid_port(grid, config, **rest))


def failures(result: Result) -> list[dict[str, Any]]:
    """Of all rounds of a run, as its rows have them."""
    return [failure for row in result.rows for failure in row["failures"]]
