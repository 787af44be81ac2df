"""A Flower grid without Flower's network: it calls the ClientApp in this process."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from sklearn.datasets import load_digits

import clients.app
from clients.app import app

Meddle = Callable[[int, Message, Message], Message | None]


def honest(node: int, question: Message, reply: Message) -> Message:
    del node, question
    return reply


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
        self._sent[name] = message
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
            reply = app(message, self.contexts[node])
        except Exception as error:  # as Flower does
            reply = Message(Error(code=0, reason=str(error)), reply_to=message)
        return self.meddle(node, message, reply)

    def kinds(self, node: int) -> list[str]:
        return [kind for i, kind, _, _ in self.asked if i == node]


@pytest.fixture(autouse=True)
def _identity() -> None:
    """Flower 1.41 makes no Message outside a task of its own."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture(autouse=True)
def _houses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several devices in one process, each with a house of its own: on a device there is one."""
    build = clients.app._device_house.__wrapped__
    monkeypatch.setattr(clients.app, "_device_house", functools.lru_cache(maxsize=8)(build))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three devices' own folders, each with its own images, and an empty one."""
    data, root = load_digits(), tmp_path_factory.mktemp("devices")
    for i, (first, last) in enumerate([(0, 60), (60, 100), (100, 180)]):
        (root / str(i)).mkdir()
        images = data.images[first:last] / 16
        np.savez(root / str(i) / "own.npz", images=images, labels=data.target[first:last])
    (root / "empty").mkdir()
    return [root / name for name in ("0", "1", "2", "empty")]


def context(node: int, **node_config: Any) -> Context:
    return Context(1, node, node_config, RecordDict(), {})


def device(node: int, partition: int | str, folder: Path) -> Context:
    return context(node, **{"partition-id": partition, "data": str(folder)})


@pytest.fixture
def devices(folders: list[Path]) -> Callable[..., FakeGrid]:
    """A grid of devices; node 70 + p holds partition p, ids descending as partitions ascend."""

    def made(count: int = 2, **rest: Any) -> FakeGrid:
        return FakeGrid({79 - p: device(79 - p, p, folders[p]) for p in range(count)}, **rest)

    return made


@pytest.fixture
def workers() -> Callable[..., FakeGrid]:
    """A grid of a simulation's workers."""

    def made(count: int, **rest: Any) -> FakeGrid:
        nodes = {90 - i: context(90 - i, **{"partition-id": i}) for i in range(count)}
        return FakeGrid(nodes, **rest)

    return made


@pytest.fixture
def joined() -> Callable[[int, int | str, Path], Context]:
    return device
