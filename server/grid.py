"""The port over a Flower grid: one message per host, folded in the order of hosts."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedprune.compression.wire import Packet
from fedprune.config import RunConfig, to_toml
from fedprune.hosts import Tick, bytes_down, grouped
from fedprune.letters import Letter, check_sum, folded_of, question_letter
from fedprune.messages import Failure, Folded, Question, Refused, encode_question, summed
from fedprune.pruning.layout import Layout
from fedprune.rounds import Port

POLL = 0.05
"""Seconds between looks for replies."""

ROLL_CALL = 5.0
"""Seconds between looks at which nodes are still there, while replies are awaited."""

_TYPES = {"score": "train.score", "tune": "train.tune", "evaluate": "evaluate"}

Reply = Letter | str
"""What came back from a node, or why nothing did."""

log = logging.getLogger("fedprune")


@dataclass(frozen=True)
class Node:
    """A node as it announced itself: a device, or a worker that can serve any host."""

    device: bool
    labels: dict[int, int]


@dataclass
class Fleet:
    """Which nodes are there, and what each can serve.

    Attributes:
        grid: Flower's grid.
        config: what runs.
        expected: nodes to wait for before the first round.
        nodes: those that announced themselves, by Flower's (random) node id.
    """

    grid: Grid
    config: RunConfig
    expected: int
    nodes: dict[int, Node] = field(default_factory=dict)

    def present(self) -> Mapping[int, int]:
        """The partitions that can be asked now, ascending, and their training labels.

        Raises:
            TimeoutError: the expected nodes did not come.
        """
        ids = self._awaited()
        self.nodes = {i: node for i, node in self.nodes.items() if i in ids}
        self._greet(sorted(ids - self.nodes.keys()))
        labels: dict[int, int] = {}
        for _, node in sorted(self.nodes.items()):
            if node.device and labels.keys() & node.labels.keys():
                raise ValueError(
                    f"partition-id={min(labels.keys() & node.labels)}: two nodes announce it; "
                    "allowed: a partition-id of its own for each node"
                )
            labels |= node.labels
        return dict(sorted(labels.items()))

    def _awaited(self) -> set[int]:
        deadline = time.monotonic() + self.config.timeout
        while len(ids := set(self.grid.get_node_ids())) < self.expected:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(ids)} of {self.expected} nodes came")
            time.sleep(POLL)
        return ids

    def _greet(self, newcomers: Sequence[int]) -> None:
        hello = Letter({"config": to_toml(self.config)}, {})
        wanted = {i: (i, hello) for i in newcomers}
        for i, reply in exchange(self.grid, wanted, "query.hello", self.config.timeout):
            if isinstance(reply, str):
                log.warning("a node could not join: %s", reply)
                continue
            about = json.loads(reply.fields["about"])
            labels = {int(p): int(n) for p, n in about["labels"].items()}
            self.nodes[i] = Node(bool(about["device"]), labels)

    def seats(self, partitions: Sequence[int]) -> list[tuple[int, list[int]]]:
        """(node id, partitions of one host), in the order in which sums are added."""
        devices = {p: i for i, n in self.nodes.items() if n.device for p in n.labels}
        if devices:
            return [(devices[p], [p]) for p in sorted(partitions)]
        workers = sorted(self.nodes)
        hosts = grouped(partitions, self.config)
        return [(workers[host % len(workers)], group) for host, group in hosts.items()]

    def simulated(self) -> bool:
        """Whether the nodes are workers of a simulation, which keep nothing between messages."""
        return not any(node.device for node in self.nodes.values())


def grid_port(
    grid: Grid, config: RunConfig, layout: Layout, expected: int, tick: Tick | None = None
) -> Port:
    """The port that asks the nodes of a Flower grid.

    A host that does not reply, or whose reply is malformed, is asked once more; then each of its
    partitions counts as failed. A device that lacks the mask is asked again with it.

    Args:
        grid: Flower's grid.
        config: what runs.
        layout: the model's layout, against which every sum is checked.
        expected: nodes to wait for before the first round.
        tick: told how many more partitions have answered.
    """
    fleet = Fleet(grid, config, expected)
    text = to_toml(config)

    def ask(question: Question, partitions: Sequence[int]) -> Folded:
        packet = encode_question(question, config.wire)
        packet = replace(packet, values=bytes(packet.values))  # once, not once a host
        seats = dict(enumerate(fleet.seats(partitions)))
        lean = not fleet.simulated()
        outcomes: dict[int, Folded | str] = {}
        down = bytes_down(packet, partitions, question.known)
        for attempt in (1, 2):
            mail = {}
            for k, (node, group) in seats.items():
                if isinstance(outcomes.get(k), Folded):
                    continue
                bare = lean and attempt == 1 and question.known.issuperset(group)
                mail[k] = (node, _letter(packet, group, "" if bare else text))
                if lean and attempt == 2:  # what a simulation resends, no device would receive
                    down += len(group) * packet.size()
            for k, reply in exchange(grid, mail, _TYPES[question.kind], config.timeout):
                group = seats[k][1]
                outcomes[k] = _understood(reply, group, question, layout)
                if tick and isinstance(outcomes[k], Folded):
                    tick(len(group))
        folded = (_or_lost(outcomes[k], seats[k][1], question.kind) for k in seats)
        return replace(summed(folded), bytes_down=down)

    return Port(ask, fleet.present)


def _letter(packet: Packet, group: list[int], config: str) -> Letter:
    """A question to one host; with the configuration come the mask and the other way round."""
    letter = question_letter(packet, group, bits=bool(config))
    return replace(letter, fields=letter.fields | {"config": config})


def _understood(
    reply: Letter | str, group: list[int], question: Question, layout: Layout
) -> Folded | str:
    """The host's sum, or why it does not count."""
    if isinstance(reply, str):
        return reply
    if reply.fields.get("missing"):
        return "lacks the mask"
    try:
        folded = folded_of(reply, group)
        check_sum(folded, question.kind, question.masks, layout)
    except Refused as refused:
        return f"{refused.field}: {refused}"
    return folded


def _or_lost(outcome: Folded | str, group: list[int], phase: str) -> Folded:
    if isinstance(outcome, Folded):
        return outcome
    return Folded(failures=tuple(Failure(p, phase, "", outcome) for p in group))


def exchange(
    grid: Grid, mail: Mapping[int, tuple[int, Letter]], message_type: str, timeout: float
) -> Iterator[tuple[int, Reply]]:
    """Send every letter and yield what comes back, in order of arrival.

    Args:
        grid: Flower's grid.
        mail: key to (node id, letter).
        message_type: Flower's, which names the client's function.
        timeout: seconds to wait; what has not come by then is a reason.

    Yields:
        Key and reply; the reason as a string for a node that left, failed or was too late.
    """
    awaited: dict[str, int] = {}
    for key, (node, letter) in mail.items():
        sent = list(grid.push_messages([Message(_records(letter), node, message_type)]))
        if sent and sent[0]:
            awaited[sent[0]] = key
        else:
            yield key, "could not be reached"
    deadline = time.monotonic() + timeout
    next_call = time.monotonic() + ROLL_CALL
    while awaited and time.monotonic() < deadline:
        for message in grid.pull_messages(list(awaited)):
            answered = awaited.pop(message.metadata.reply_to_message_id, None)
            if answered is not None:
                yield answered, _opened(message)
        if awaited and time.monotonic() > next_call:
            next_call = time.monotonic() + ROLL_CALL
            there = set(grid.get_node_ids())
            for sent_id, key in [(i, k) for i, k in awaited.items() if mail[k][0] not in there]:
                del awaited[sent_id]
                yield key, "left"
        if awaited:
            time.sleep(POLL)
    for key in awaited.values():
        yield key, f"no reply within {timeout:g} s"


def _records(letter: Letter) -> RecordDict:
    arrays = {
        name: Array("uint8", (len(data),), "fedprune.bytes", data)
        for name, data in letter.buffers.items()
    }
    return RecordDict({"fields": ConfigRecord(letter.fields), "buffers": ArrayRecord(arrays)})


def _opened(message: Message) -> Reply:
    if message.has_error():
        return " ".join(str(message.error.reason).split())[:300]
    content = message.content
    buffers = {name: a.data for name, a in content.array_records["buffers"].items()}
    return Letter(dict(content.config_records["fields"]), buffers)
