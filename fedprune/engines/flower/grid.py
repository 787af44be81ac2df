"""The port over a Flower grid: one message per host, folded in the order of hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from fedprune.client.host import Tick, bytes_down, grouped
from fedprune.codec.wire import Packet
from fedprune.config import RunConfig, to_toml
from fedprune.config.kinds import KINDS
from fedprune.engines.flower.fleet import Assignment, Fleet
from fedprune.engines.flower.mail import (
    MISSING,
    POLL,
    Lost,
    Reply,
    exchange,
)
from fedprune.engines.flower.sealed import sealed_sums
from fedprune.options.refusal import Refused
from fedprune.protocol.checks import check_sum
from fedprune.protocol.forms import Form, form_of
from fedprune.protocol.letters import (
    Letter,
    folded_of,
    identity,
    parts_in,
    question_letter,
    size_of,
)
from fedprune.protocol.messages import (
    Aggregate,
    Failure,
    Question,
    longest_about,
    loud_in,
    summed,
)
from fedprune.protocol.models import layout_at
from fedprune.protocol.packets import encode_question
from fedprune.protocol.parts import Part, added
from fedprune.protocol.port import Port

Outcome = Aggregate | list[Part] | Refused | Lost
"""A host's sum, a device's parts, a reply that does not count, or none."""


def grid_port(grid: Grid, config: RunConfig, tick: Tick | None = None) -> Port:
    """The port that asks the nodes of a Flower grid.

    A host that does not reply is asked once more, then each of its partitions counts as failed.
    So is a device that lacks the mask or the configuration, this time with both. A sum that is
    malformed or not finite is refused at once.

    Args:
        grid: Flower's grid.
        config: what runs.
        tick: told how many more partitions have answered.
    """
    fleet = Fleet(grid, config)
    put = sealed_sums(fleet, tick) if config.secure != "none" else _open_sums(fleet, tick)

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        aggregate = put(question, partitions)
        if question.kind == "evaluate":
            fleet.gathering = question.round < config.rounds
        # What comes before the first round has no row to be in: the news wait for one.
        failed, said = fleet.news() if KINDS[question.kind].weights else ((), ())
        return replace(aggregate, failures=aggregate.failures + failed, notices=said)

    return Port(
        *(ask, fleet.present),
        rehearsed=True,
        own_data=lambda: not fleet.simulated(),
        federation=_federation(grid),
    )


def _federation(grid: Grid) -> str:
    """The federation that a run was submitted to; "" for a SuperLink that knows none."""
    named = str(getattr(getattr(grid, "run", None), "federation_id", "") or "")
    return "" if named.startswith("@none/") else named


def _open_sums(fleet: Fleet, tick: Tick | None) -> Callable[[Question, Sequence[int]], Aggregate]:
    """What asks every host for its sum, and adds up the sums."""
    config = fleet.config

    def put(question: Question, partitions: Sequence[int]) -> Aggregate:
        packet = encode_question(question, config.wire)
        packet = replace(packet, values=bytes(packet.values))  # once, not once a host
        form = form_of(question, config, layout_at(config, question.edits))
        assignments = dict(enumerate(fleet.assignments(partitions)))
        hosts = list(grouped(partitions, config).values())
        asking = _Asking(fleet, question, packet, form, assignments, hosts)
        asking.ask(again=False, tick=tick)
        asking.ask(again=True, tick=tick)
        asking.ask_apart(tick)
        return replace(summed(asking.sums()), bytes_down=asking.down)

    return put


@dataclass
class _Asking:
    """One question to every host, and what has come of it so far.

    Attributes:
        fleet: who is there.
        question: what is asked.
        packet: the same, encoded.
        form: what an answer consists of.
        assignments: who is asked for what, by the host's place in the sum.
        hosts: the partitions that a simulation's hosts would serve, in the order of their sums.
        outcomes: what has come, by the same place.
        down: bytes that devices have received.
    """

    fleet: Fleet
    question: Question
    packet: Packet
    form: Form
    assignments: dict[int, Assignment]
    hosts: list[list[int]]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    down: int = 0

    def ask(self, *, again: bool, tick: Tick | None) -> None:
        """Ask those that have not replied yet."""
        config, kind = self.fleet.config, self.question.kind
        mail = {
            k: (node, self._letter(group, again))
            for k, (node, group) in self.assignments.items()
            if node is not None and self._open(k) and not self._risky(k)
        }
        poll = POLL[self.fleet.simulated()]
        for k, reply in exchange(self.fleet.grid, mail, KINDS[kind].flower, config.timeout, poll):
            group = self.assignments[k][1]
            if not isinstance(reply, Lost) or reply.sent:
                self.down += self._weight(mail[k][1], group, again)
            self.outcomes[k] = outcome = self._understood(reply, group)
            if tick and isinstance(outcome, Aggregate | list):
                tick(len(group))

    def ask_apart(self, tick: Tick | None) -> None:
        """Ask the partitions of a host that broke down twice one by one: one of them may do that.

        Whoever breaks its host when asked alone is kept apart from the others from then on. Where
        nothing came in time nobody is asked again: that would take as long once more.
        """
        if not self.fleet.simulated():
            return
        broken = [
            k
            for k, (node, group) in self.assignments.items()
            if node is not None and len(group) > 1 and self._open(k) and not self._late(k)
        ]
        breaking = self.fleet.breaking
        for k in broken:
            node, group = self.assignments[k]
            assignments: dict[int, Assignment] = {p: (node, [p]) for p in group}
            alone = replace(self, assignments=assignments, outcomes={}, down=0)
            alone.ask(again=k in self.outcomes, tick=tick)
            self.down += alone.down
            self.outcomes[k] = summed(alone.sums())
            lost = {p for p, said in alone.outcomes.items() if isinstance(said, Lost)}
            breaking -= set(group)
            breaking |= {p for p in lost if not alone._late(p)}

    def _risky(self, k: int) -> bool:
        """Whether one of the host's partitions is known to break it."""
        group = self.assignments[k][1]
        return len(group) > 1 and not self.fleet.breaking.isdisjoint(group)

    def _late(self, k: int) -> bool:
        outcome = self.outcomes.get(k)
        return isinstance(outcome, Lost) and outcome.late

    def _open(self, k: int) -> bool:
        outcome = self.outcomes.get(k)
        return outcome is None or (isinstance(outcome, Lost) and not outcome.left)

    def _letter(self, group: list[int], again: bool) -> Letter:
        """The question to one host: a device has the configuration, unless it said otherwise."""
        lean = not self.fleet.simulated() and not again
        q, text = self.question, to_toml(self.fleet.config)
        bare, learnt = lean and q.known.issuperset(group), lean and q.taught.issuperset(group)
        letter = question_letter(self.packet, group, bits=not bare, teacher=not learnt)
        named = {"config": "" if lean else text, "config_id": identity(text)}
        return replace(letter, fields=letter.fields | named | {"sum": self._summable(group)})

    def _summable(self, group: list[int]) -> bool:
        """Whether a device may answer with one sum: it holds all of a host that are asked."""
        alone = self.form.singly or self.form.normed
        return len(group) > 1 and not alone and group in self.hosts

    def _weight(self, letter: Letter, group: list[int], again: bool) -> int:
        """Bytes of a question that was sent; what a simulation resends no device would receive."""
        if not self.fleet.simulated():
            text = str(letter.fields["config"])
            return len(self.packet.head) + sum(map(len, letter.buffers.values())) + len(text)
        return (
            0
            if again
            else bytes_down(self.packet, group, self.question.known, self.question.taught)
        )

    def _understood(self, reply: Reply, group: list[int]) -> Outcome:
        """What a host said, or why it does not count."""
        if not isinstance(reply, Letter):
            return reply
        if reply.fields.get("missing"):
            return MISSING
        try:
            if self.fleet.simulated():
                return _checked(folded_of(reply, group), self.form)
            if self._summable(group) and "total" in reply.buffers:
                return self._sum_of_device(reply, group)
            return parts_in(reply, group, self.question.kind)
        except Refused as refused:
            return refused

    def _sum_of_device(self, reply: Letter, group: list[int]) -> Aggregate:
        """One sum of a device's partitions: what it says of bytes and sizes is not read."""
        kind, most = self.question.kind, longest_about(len(group), self.form.totals)
        said = replace(folded_of(reply, group, kind, most), bytes_up=size_of(reply), loud=())
        said = _checked(said, self.form)
        if said.total is None or kind != "tune":
            return said
        return replace(said, loud=loud_in(said.total, said.answered, said.weight))

    def sums(self) -> list[Aggregate]:
        """The sums in the order in which they are added: the same on devices as in a simulation."""
        if self.fleet.simulated():
            return [self._of_assignment(k) for k in self.assignments]
        said: dict[int, Part] = {}
        whole: dict[int, Aggregate] = {}
        for k, (_, group) in self.assignments.items():
            outcome = self.outcomes.get(k)
            if isinstance(outcome, list):
                said |= {part.partition: part for part in outcome}
            else:
                whole[group[0]] = self._of_assignment(k)
        return [self._of_host(group, said, whole) for group in self.hosts]

    def _of_host(
        self, group: list[int], said: Mapping[int, Part], whole: Mapping[int, Aggregate]
    ) -> Aggregate:
        """The partitions of one host of a simulation, added in their order."""
        total = Aggregate()
        for p in group:
            if p in said:
                total = added(said[p], self.question, self.form, self.fleet.config, total)
            elif p in whole:
                total = summed([total, whole[p]])
        return total

    def _of_assignment(self, k: int) -> Aggregate:
        outcome, group = self.outcomes.get(k, Lost("left")), self.assignments[k][1]
        assert not isinstance(outcome, list)  # parts are added one by one
        if isinstance(outcome, Aggregate):
            return outcome
        name, reason = (
            (outcome.field, str(outcome)) if isinstance(outcome, Refused) else ("", outcome.reason)
        )
        return Aggregate(
            failures=tuple(Failure(p, self.question.kind, name, reason) for p in group)
        )


def _checked(aggregate: Aggregate, form: Form) -> Aggregate:
    check_sum(aggregate, form)
    return aggregate
