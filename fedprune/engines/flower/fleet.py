"""Who is there: nodes announce themselves, and partitions are asked where they live.

A fleet is either devices, each with a partition and data of its own, or the workers of a
simulation, any of which can serve any partition.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flwr.serverapp import Grid

from fedprune.client.host import grouped
from fedprune.codec.wire import Packet
from fedprune.config import RunConfig, to_toml
from fedprune.engines.flower.announced import Announced, announced_on, greeting, refusal_said
from fedprune.engines.flower.exchange import Incoming, Lost, Outgoing, Pending
from fedprune.engines.flower.holders import Assignment, by_device, holders_of
from fedprune.engines.flower.news import News
from fedprune.engines.flower.waiting import MISSED, Waiting, left_on
from fedprune.options.refusal import ConfigError, Refused
from fedprune.protocol.failures import Failure

JOIN = 900.0
"""Seconds in which a worker of our own simulation must have loaded model and data, whatever
``--timeout`` says: that is how long a phase may take, and how long devices are waited for."""

GATHER_POLL = 0.2
"""Seconds between looks for newcomers, while a round waits for enough of them."""

PATIENCE_LOG = 30.0
"""Seconds of waiting between lines that say so."""

log = logging.getLogger("fedprune")


@dataclass
class Fleet:
    """Which nodes are there, and what each can serve.

    Attributes:
        grid: Flower's grid.
        config: what runs.
        nodes: those that announced themselves, by Flower's (random) node id, in order of arrival.
        gathering: a round is about to begin: for that, but not within a round, it is worth
            waiting until enough partitions are there.
        breaking: partitions of a simulation whose worker died when they were asked alone.
        lacking: partitions of devices that do not hold the base model.
        late: by device, phases that it missed the deadline of and has answered no question of
            since, and "" until it has answered any. It is out until it has answered a greeting, and
            then nobody waits for it alone in these phases, in none with "".
        out: partitions of those that have not answered it.
        news: what there is to say of nodes that do not take part.
    """

    grid: Grid
    config: RunConfig
    nodes: dict[int, Announced] = field(default_factory=dict)
    gathering: bool = True
    breaking: set[int] = field(default_factory=set)
    lacking: set[int] = field(default_factory=set)
    late: dict[int, set[str]] = field(default_factory=dict)
    out: set[int] = field(default_factory=set)
    news: News = field(default_factory=News)
    _began: bool = False
    _gave_up: bool = False
    _pending: Pending = field(init=False)
    _greeted: dict[int, int] = field(default_factory=dict)
    _took: dict[str, list[float]] = field(default_factory=dict)
    _asked: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pending = Pending(self.grid)

    @cached_property
    def text(self) -> str:
        """The configuration as every node is sent it."""
        return to_toml(self.config)

    def present(self) -> Mapping[int, int]:
        """The partitions that can be asked now, ascending, and their training labels.

        Before the first round this waits for a cohort's worth of them (those that announced that
        they cannot take part count as come), before a later one for `min_clients`; no longer than
        the configuration's `timeout`, then the round goes on with who is there. What was waited
        for in vain is not waited for again until there are enough.

        Raises:
            ConfigError: a worker of a simulation cannot serve, so could none; none has come; or
                who is faster would count, of workers.
        """
        self._look()
        if self.gathering:
            self._wait()
        if self.config.engine == "flower" and self.config.over_select > 1 and self.simulated():
            what = "nodes are workers of a simulation, of which none is faster than another"
            allowed = "1, devices with data of their own, or --profiles in simulations/run.py"
            raise ConfigError(
                f"over-select={self.config.over_select:g}: {what}; allowed: {allowed}"
            )
        self.news.missing(self.grid, self.config.clients, self.nodes.values())
        self._began, self.gathering = True, False
        return dict(sorted(self._labels().items()))

    def _wait(self) -> None:
        began = said = time.monotonic()
        ours = self.config.engine == "ray" and not self._began
        while not self._enough() and not self._gave_up:
            self._gave_up = time.monotonic() > began + (JOIN if ours else self.config.timeout)
            if self._gave_up and ours and not self.nodes:
                raise ConfigError(
                    f"engine='ray': no worker has joined within {JOIN:g} s; "
                    "allowed: --engine inline, or fewer --workers"
                )
            if time.monotonic() > said + PATIENCE_LOG:
                said = time.monotonic()
                log.warning("waiting for clients: %d are there", len(self._labels()))
            time.sleep(GATHER_POLL)
            self._look()
        self._gave_up = self._gave_up and len(self._labels()) < self.config.min_clients

    def _enough(self) -> bool:
        there = len(self._labels())
        if there < self.config.min_clients:
            return False
        out = 0 if self.simulated() else len(self.nodes) - len(set(self._holders().values()))
        return self._began or there + out >= self.config.cohort

    def _look(self) -> None:
        """Greet who has come, hear who has answered, forget who has left."""
        there = self.news.there(self.grid)
        for i in self._greeted.keys() - there:
            del self._greeted[i]
            self._pending.forget((0, i))
            self.nodes.pop(i, None)
        for i in sorted(there - self._greeted.keys()):
            self._greet(i)
        for (_, i), reply in list(self._pending.replies()):
            self._hear(i, reply)

    def _greet(self, node: int) -> None:
        hello = Outgoing(node, "query.hello", greeting(self.text))
        if self._pending.send((0, node), hello):
            self._greeted[node] = self._greeted.get(node, 0) + 1

    def _hear(self, i: int, reply: Incoming) -> None:
        try:
            node = (
                reply
                if isinstance(reply, Lost)
                else announced_on(self.grid, reply, self.config.clients)
            )
        except Refused as refused:
            node = Lost(f"{refused.field}: {refused}")
        if isinstance(node, Announced):
            self.nodes[i] = node
            self.news.of_node(i, node)
            self.out -= node.labels.keys()
            self._judge(i, node)
        elif self._greeted[i] == 1:
            self._greet(i)
        else:
            self.news.notice(i, "", f"{self.news.name(i)} could not join: {node.reason}")

    def waiting(self, phase: str, began: float, size: int, asked: frozenset[int]) -> Waiting:
        """How long a question of such a phase, put then, is waited for."""
        c, known = self.config, tuple(self._took.get(phase, ()))
        if self.simulated():
            return Waiting(began, c.timeout)
        auto = c.deadline == "auto"
        most = min(c.timeout, c.deadline) if isinstance(c.deadline, float) else c.timeout
        late = frozenset(i for i, phases in self.late.items() if phases & {phase, ""})
        return Waiting(began, most, auto, size, known, asked, late)

    def took(self, phase: str, seconds: list[float]) -> None:
        """Note in how many seconds nodes have answered a question."""
        if seconds:
            self._took[phase] = seconds

    def heard(self, node: int, reply: Incoming, phase: str) -> None:
        """Note whether a device has answered a question in time: who has not is greeted again."""
        if isinstance(reply, Packet) and node in self.late:
            self.late[node] -= {phase, ""}
        if not isinstance(reply, Lost) or not reply.late or self.simulated():
            return
        self.late.setdefault(node, set()).update({phase, ""})
        if node in self.nodes:
            self.out.update(self.nodes.pop(node).labels)
            self._greeted[node] = 0
            self._greet(node)

    def absent(self, group: Sequence[int]) -> Lost:
        """Why partitions that nobody serves are not there."""
        late = not self.out.isdisjoint(group)
        return Lost(MISSED if late else left_on(self.grid), late=late)

    def _judge(self, i: int, node: Announced) -> None:
        """Make known why a node does not take part, once; a simulation's must."""
        if node.failure is None:
            return
        if not node.device:
            raise ConfigError(refusal_said(node.failure.reason))
        failure, others = node.failure, self._holders()
        if failure.partition in others or not 0 <= failure.partition < self.config.clients:
            # Who holds the partition that it names has nothing to do with it.
            said = failure.reason.startswith(failure.field)
            where = f"{failure.field}: " if not said else ""
            self.news.notice(
                i, failure.field, f"{self.news.name(i)} could not join: {where}{failure.reason}"
            )
        else:
            self.news.failed(i, failure)

    def with_node(self, failure: Failure) -> Failure:
        """A device's failure with the node that was asked, where Flower knows more than its number.

        What was said to a greeting has it already.
        """
        if failure.phase == "hello" or self.simulated():
            return failure
        return self.news.named(failure, self._asked.get(failure.partition))

    def _labels(self) -> dict[int, int]:
        if not self.simulated():
            return {p: self.nodes[i].labels[p] for p, i in self._holders().items()}
        return next((dict(n.labels) for n in self.nodes.values()), {})

    def _holders(self) -> dict[int, int]:
        return holders_of(self.nodes, self.news)

    def simulated(self) -> bool:
        """Whether the nodes are workers of a simulation, which keep nothing between messages."""
        return not self.out and not any(node.device for node in self.nodes.values())

    def assignments(self, partitions: Sequence[int]) -> list[Assignment]:
        """Who is asked for what, in the order in which sums are added."""
        if self.late:
            self._look()
        if not self.simulated():
            holders = self._holders()
            self._asked |= holders
            return by_device(sorted(partitions), holders)
        workers: list[int | None] = [*sorted(self._greeted)] or [None]
        hosts = grouped(partitions, self.config)
        return [(workers[host % len(workers)], group) for host, group in hosts.items()]
