"""Open sums over a Flower grid: one message per host, folded in the order of hosts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fedprune.client.carried_memory import enclosed, take_back
from fedprune.client.host import grouped
from fedprune.client.memory import ClientMemory, memory_of
from fedprune.client.serving import Tick
from fedprune.codec.wire import Packet
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.engines.flower.asking import ON_THE_WAY, Asking, Request, ask
from fedprune.engines.flower.exchange import Lost
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.holders import Assignment
from fedprune.protocol.aggregate import Aggregate, loud_from, loud_in
from fedprune.protocol.broadcast import Broadcast, broadcast
from fedprune.protocol.checks import check_sum
from fedprune.protocol.failures import Failure, longest_about
from fedprune.protocol.form import Form
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.models import layout_at
from fedprune.protocol.parts import PartitionPart, with_part
from fedprune.protocol.port import Ask
from fedprune.protocol.replies import folded_of, parts_in
from fedprune.protocol.running_sum import RunningSum, summed
from fedprune.protocol.sum_in_file import SumInFile, outside_for
from fedprune.server.fleet import spare_told

Put = Callable[[Sequence[Ask]], list[Aggregate]]
"""What puts several asks and gives back the sum of the answers to each."""


def open_sums(fleet: Fleet, tick: Tick | None, memory: ClientMemory) -> Put:
    """What asks every host for its sum, all asks side by side, and adds up the sums of each."""
    config = fleet.config

    def one(each: Ask) -> tuple[_Asked, HostSum, Asking[Outcome]]:
        question, partitions = each.question, each.partitions
        form = form_of(question, config, layout_at(config, question.edits))
        hosts = list(grouped(partitions, config).values())
        sent = broadcast(question, config.wire, here=True)  # nothing changes while it is asked
        asked = _Asked(fleet, question, sent, form, hosts, memory)
        assignments, total = dict(enumerate(fleet.assignments(partitions))), asked.sum_of(hosts)
        return asked, total, Asking(fleet, asked.request, assignments, total.take)

    def some(asks: Sequence[Ask]) -> list[Aggregate]:
        all_ = [one(each) for each in asks]
        for again in (False, True):
            ask([asking for _, _, asking in all_], again=again, tick=tick)
        for asked, _, asking in all_:
            _ask_apart(asked, asking, tick)
            asking.go_on(over=True)
        return [_counted(total.sum.whole(), asking) for _, total, asking in all_]

    def put(asks: Sequence[Ask]) -> list[Aggregate]:
        return [aggregate for part in _parts(asks) for aggregate in some(part)]

    return put


def _counted(total: Aggregate, asking: Asking[Outcome]) -> Aggregate:
    """A sum with the bytes of all that was sent for it, and with who was not waited for."""
    said = spare_told(asking.request.phase, asking.spare)
    up, notices = total.bytes_up + asking.unused, total.notices + said
    return replace(total, bytes_down=asking.down, bytes_up=up, notices=notices)


def _parts(asks: Sequence[Ask]) -> Iterator[list[Ask]]:
    """The asks in parts of which each is about models of bounded size together."""
    part: list[Ask] = []
    size = 0
    for each in asks:
        its = sum(w.numel() * w.element_size() for w in each.question.weights.values())
        if part and size + its > ON_THE_WAY:
            yield part
            part, size = [], 0
        part.append(each)
        size += its
    if part:
        yield part


@dataclass(frozen=True)
class _Asked:
    """A question that is asked in the open, also encoded; who is there, and what its answers hold.

    `hosts` are the partitions that a simulation's hosts would serve, in the order of their sums;
    `memory` is what a simulation's clients remember.
    """

    fleet: Fleet
    question: Question
    sent: Broadcast
    form: Form
    hosts: list[list[int]]
    memory: ClientMemory

    def sum_of(self, hosts: list[list[int]]) -> HostSum:
        """What its answers are added up in: of devices outside memory, where they are large."""
        config, form = self.fleet.config, self.form
        inside = self.fleet.simulated() or form.singly
        run = self.memory.folder and self.memory.folder.parent
        # What noise is to hide before anybody sees it is not left on a disk as it is.
        outside = outside_for(form.values, run, hidden=config.dp != "none")
        return HostSum((self.question, form, config), hosts, None if inside else outside)

    @property
    def request(self) -> Request[Outcome]:
        """How it is put to every host."""
        kind = self.question.kind
        how = (self._packet, self._said, self._weight, self._alone)
        most = self.form.largest  # of a partition; a sum is sent where it is smaller
        return Request(KINDS[kind].flower, kind, *how, lambda group: most * len(group))

    def _packet(self, group: list[int], lean: bool) -> Packet:
        sent = self.sent.for_who(lacks=not self.fleet.lacking.isdisjoint(group))
        packet = sent.packet(group, lean=lean)
        fields = {**packet.fields, "sum": self._summable(group)}
        return Packet(fields, {**packet.buffers, **self._remembered(group)})

    def _remembered(self, group: list[int]) -> dict[str, bytes]:
        """What these clients remember, for a worker of a simulation; a device has it itself."""
        of = memory_of(self.question, self.fleet.config)
        if not of or not self.fleet.simulated():
            return {}
        return enclosed(self.memory, of, self._counted(group))

    def _counted(self, group: list[int]) -> dict[int, int]:
        return {p: self.question.counted.get(p, 0) for p in group}

    def _summable(self, group: list[int]) -> bool:
        """Whether a device may answer with one sum: it holds all of a host that are asked."""
        alone = self.form.singly or self.form.normed
        return len(group) > 1 and not alone and group in self.hosts

    def _weight(self, packet: Packet, group: list[int], again: bool) -> int:
        """Bytes of a question that was sent; what a simulation resends no device would receive."""
        if self.fleet.simulated():
            return 0 if again else self.sent.size(group)
        fields = {name: packet.fields[name] for name in ("head", "config")}
        return replace(packet, fields=fields).size()

    def _alone(self, packet: Packet) -> int:
        """Bytes that only one host is sent, which are counted nowhere else."""
        return max(0, packet.size() - self.sent.common.size())

    def _said(self, reply: Packet, group: list[int]) -> Outcome:
        if self.fleet.simulated():
            check_sum(said := folded_of(reply, group), self.form)
            take_back(self.memory, reply, self._counted(group))
            return said
        if self._summable(group) and "total" in reply.buffers:
            return self._sum_of_device(reply, group)
        return parts_in(reply, group, self.question.kind)

    def _sum_of_device(self, reply: Packet, group: list[int]) -> Aggregate:
        """One sum of a device's partitions: what it says of bytes and sizes is not read."""
        kind, most = self.question.kind, longest_about(len(group), self.form.totals)
        said = replace(folded_of(reply, group, kind, most), bytes_up=reply.size(), loud=())
        check_sum(said, self.form)
        least = loud_from(kind)
        if said.total is None or least == math.inf:
            return said
        return replace(said, loud=loud_in(said.total, said.answered, said.weight, least))


def _ask_apart(asked: _Asked, asking: Asking[Outcome], tick: Tick | None) -> None:
    """Ask the partitions of a host that broke down twice one by one: one of them may do that.

    Whoever breaks its host when asked alone is kept apart from the others from then on. Where
    nothing came in time nobody is asked again: that would take as long once more.
    """
    fleet = asking.fleet
    if not fleet.simulated():
        return
    for k, (node, group) in asking.assignments.items():
        if node is None or len(group) == 1 or not asking.unanswered(k) or asking.late(k):
            continue
        assignments: dict[int, Assignment] = {p: (node, [p]) for p in group}
        total = asked.sum_of([[p] for p in group])
        alone = Asking(fleet, asking.request, assignments, total.take)
        ask([alone], again=k in asking.outcomes, tick=tick)
        lost = {p for p, said in alone.outcomes.items() if isinstance(said, Lost)}
        fleet.breaking -= set(group)
        fleet.breaking |= {p for p in lost if not alone.late(p)}
        alone.go_on(over=True)
        asking.down += alone.down
        asking.outcomes[k] = total.sum.whole()
        asking.go_on()


Outcome = Aggregate | list[PartitionPart]
"""What a host says: one sum, or of a device its parts."""

Asked = tuple[Question, Form, RunConfig]
"""What is asked, what an answer consists of, and the configuration."""


class HostSum:
    """What was said to a question, added up host by host in the order of a simulation's hosts.

    That is the same on devices, whoever of them serves what. In `sum` are the hosts of which all
    has been said that will be.
    """

    def __init__(
        self, asked: Asked, hosts: Sequence[list[int]], outside: SumInFile | None = None
    ) -> None:
        self._asked, self._outside, self.sum = asked, outside, RunningSum(outside)
        self._hosts = deque(hosts)
        self._said: dict[int, PartitionPart] = {}
        self._whole: dict[int, Aggregate] = {}
        self._over: set[int] = set()

    def take(self, group: list[int], said: Outcome | tuple[Failure, ...]) -> None:
        """Take in what was said of some partitions."""
        if isinstance(said, list):
            self._said |= {part.partition: part for part in said}
        else:
            whole = said if isinstance(said, Aggregate) else Aggregate(failures=said)
            self._whole[group[0]] = whole
        self._over.update(group)
        while self._hosts and self._over.issuperset(self._hosts[0]):
            self._add(self._hosts.popleft())

    def _add(self, group: list[int]) -> None:
        """Add a host; the answer of a partition alone at once, without a sum of its own."""
        if len(group) > 1 or group[0] not in self._said or self._asked[1].singly:
            self.sum.add(self._of_host(group))
            return
        part = self._said.pop(group[0])
        self.sum.grow(lambda before: with_part(part, *self._asked, before, self._outside))

    def _of_host(self, group: list[int]) -> Aggregate:
        """The partitions of one host of a simulation, added in their order."""
        total = Aggregate()
        for p in group:
            if p in self._said:
                part = self._said.pop(p)
                total = with_part(part, *self._asked, total)
            elif p in self._whole:
                total = summed([total, self._whole.pop(p)])
        return total
