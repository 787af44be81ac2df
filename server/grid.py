"""The port over a Flower grid: one message per host, folded in the order of hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from fedprune.compression.wire import Packet
from fedprune.config import RunConfig, to_toml
from fedprune.forms import Form, check_sum, form_of
from fedprune.hosts import Tick, bytes_down
from fedprune.letters import Letter, folded_of, identity, question_letter
from fedprune.messages import Failure, Folded, Question, Refused, summed
from fedprune.packets import encode_question
from fedprune.shapes import layout_at
from fedprune.state import Port
from server.fleet import Fleet, Seat
from server.mail import MISSING, POLL, TYPES, Lost, Reply, exchange
from server.sealed import sealed_sums

Outcome = Folded | Refused | Lost
"""A host's sum, one that does not count, or none."""


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

    def ask(question: Question, partitions: Sequence[int]) -> Folded:
        folded = put(question, partitions)
        if question.kind == "evaluate":
            fleet.gathering = question.round < config.rounds
        # What comes before the first round has no row to be in: the news wait for one.
        news = () if question.kind in {"describe", "tokens"} else fleet.news()
        return replace(folded, failures=folded.failures + news)

    return Port(ask, fleet.present)


def _open_sums(fleet: Fleet, tick: Tick | None) -> Callable[[Question, Sequence[int]], Folded]:
    """What asks every host for its sum, and adds up the sums."""
    config = fleet.config

    def put(question: Question, partitions: Sequence[int]) -> Folded:
        packet = encode_question(question, config.wire)
        packet = replace(packet, values=bytes(packet.values))  # once, not once a host
        form = form_of(question, config, layout_at(config, question.edits))
        asking = _Asking(fleet, question, packet, form, dict(enumerate(fleet.seats(partitions))))
        asking.ask(again=False, tick=tick)
        asking.ask(again=True, tick=tick)
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
        seats: who is asked for what, by the host's place in the sum.
        outcomes: what has come, by the same place.
        down: bytes that devices have received.
    """

    fleet: Fleet
    question: Question
    packet: Packet
    form: Form
    seats: dict[int, Seat]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    down: int = 0

    def ask(self, *, again: bool, tick: Tick | None) -> None:
        """Ask those that have not replied yet."""
        config, kind = self.fleet.config, self.question.kind
        mail = {
            k: (node, self._letter(group, again))
            for k, (node, group) in self.seats.items()
            if node is not None and self._open(k)
        }
        poll = POLL[self.fleet.simulated()]
        for k, reply in exchange(self.fleet.grid, mail, TYPES[kind], config.timeout, poll):
            group = self.seats[k][1]
            self._weigh(reply, group, again)
            self.outcomes[k] = outcome = _understood(reply, group, self.form)
            if tick and isinstance(outcome, Folded):
                tick(len(group))

    def _open(self, k: int) -> bool:
        outcome = self.outcomes.get(k)
        return outcome is None or (isinstance(outcome, Lost) and not outcome.left)

    def _letter(self, group: list[int], again: bool) -> Letter:
        """The question to one host; the configuration comes with the mask and goes without it."""
        lean = not self.fleet.simulated()
        bare = lean and not again and self.question.known.issuperset(group)
        text = to_toml(self.fleet.config)
        learnt = lean and not again and self.question.taught.issuperset(group)
        letter = question_letter(self.packet, group, bits=not bare, teacher=not learnt)
        named = {"config": "" if bare else text, "config_id": identity(text)}
        return replace(letter, fields=letter.fields | named)

    def _weigh(self, reply: Reply, group: list[int], again: bool) -> None:
        """Count what the question weighed; what a simulation resends no device would receive."""
        sent = not isinstance(reply, Lost) or reply.sent
        if sent and not (again and self.fleet.simulated()):
            q, nobody = self.question, frozenset[int]()
            known, taught = (nobody, nobody) if again else (q.known, q.taught)
            self.down += bytes_down(self.packet, group, known, taught)

    def sums(self) -> list[Folded]:
        """One sum a host, in the order in which they are added."""
        return [self._sum(k, group) for k, (_, group) in self.seats.items()]

    def _sum(self, k: int, group: list[int]) -> Folded:
        outcome = self.outcomes.get(k, Lost("left"))
        if isinstance(outcome, Folded):
            return outcome
        name, reason = (
            (outcome.field, str(outcome)) if isinstance(outcome, Refused) else ("", outcome.reason)
        )
        return Folded(failures=tuple(Failure(p, self.question.kind, name, reason) for p in group))


def _understood(reply: Reply, group: list[int], form: Form) -> Outcome:
    """The host's sum, or why it does not count."""
    if not isinstance(reply, Letter):
        return reply
    if reply.fields.get("missing"):
        return MISSING
    try:
        folded = folded_of(reply, group)
        check_sum(folded, form)
        return folded
    except Refused as refused:
        return refused
