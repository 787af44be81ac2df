"""Secure sums over a Flower grid: one message per host and stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fedprune.client.host import Tick
from fedprune.config import to_toml
from fedprune.config.kinds import KINDS
from fedprune.engines.flower.fleet import Assignment, Fleet
from fedprune.engines.flower.mail import (
    MISSING,
    POLL,
    Lost,
    Reply,
    exchange,
)
from fedprune.options.refusal import Refused
from fedprune.protocol.letters import (
    Letter,
    identity,
    question_letter,
    size_of,
)
from fedprune.protocol.messages import Aggregate, Failure, Question
from fedprune.protocol.models import layout_at
from fedprune.secagg import messages as calls
from fedprune.secagg.messages import (
    Call,
    Parcel,
    call_for,
    call_letter,
    merged,
    reply_of,
)
from fedprune.secagg.server_stages import secure_ask

Outcome = calls.Reply | Refused | Lost
"""What a host said in a stage, something that does not count, or nothing."""


def sealed_sums(
    fleet: Fleet, tick: Tick | None = None
) -> Callable[[Question, Sequence[int]], Aggregate]:
    """What puts a question to a fleet and gives back the secure sum of the answers.

    A host that does not reply in a stage is asked once more; a device that lacks the mask or the
    configuration too, this time with both. What it said then, it says again.

    Args:
        fleet: who is there.
        tick: told how many more partitions were asked for their vector.
    """
    config = fleet.config

    def transport(call: Call, partitions: Sequence[int], parcel: Parcel | None) -> calls.Reply:
        assignments = dict(enumerate(fleet.assignments(partitions)))
        stage = _Stage(fleet, call, parcel, assignments)
        stage.ask(again=False, tick=tick)
        stage.ask(again=True, tick=tick)
        return replace(merged(stage.replies()), resent=stage.resent)

    def put(question: Question, partitions: Sequence[int]) -> Aggregate:
        layout = layout_at(config, question.edits)
        return secure_ask(question, partitions, layout, config, transport)

    return put


@dataclass
class _Stage:
    """One stage, put to every host, and what has come of it so far.

    Attributes:
        fleet: who is there.
        call: what is asked.
        parcel: the question that goes along, if one does.
        assignments: who is asked for which partitions.
        outcomes: what has come, by the place among the assignments.
        resent: bytes that devices were sent a second time.
    """

    fleet: Fleet
    call: Call
    parcel: Parcel | None
    assignments: dict[int, Assignment]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    resent: int = 0

    def ask(self, *, again: bool, tick: Tick | None) -> None:
        """Ask those that have not replied yet."""
        config, parcel = self.fleet.config, self.parcel
        mail = {
            k: (node, self._letter(group, again))
            for k, (node, group) in self.assignments.items()
            if node is not None and self._open(k)
        }
        kind = f"query.{self.call.stage}" if parcel is None else KINDS[parcel.question.kind].flower
        poll = POLL[self.fleet.simulated()]
        for k, reply in exchange(self.fleet.grid, mail, kind, config.timeout, poll):
            group = self.assignments[k][1]
            if again and not self.fleet.simulated():
                self.resent += size_of(mail[k][1])
            self.outcomes[k] = outcome = self._understood(reply, group)
            if tick and parcel is not None and isinstance(outcome, calls.Reply):
                tick(len(group))

    def _open(self, k: int) -> bool:
        outcome = self.outcomes.get(k)
        return outcome is None or (isinstance(outcome, Lost) and not outcome.left)

    def _letter(self, group: list[int], again: bool) -> Letter:
        """The call to one host; with the question, its mask and teacher where they are lacking."""
        lean = not self.fleet.simulated() and not again
        text = to_toml(self.fleet.config)
        letter = call_letter(call_for(self.call, group))
        if self.parcel is not None:
            question = self.parcel.question
            bare = lean and question.known.issuperset(group)
            learnt = lean and question.taught.issuperset(group)
            asked = question_letter(self.parcel.packet, group, bits=not bare, teacher=not learnt)
            letter = Letter(asked.fields | letter.fields, asked.buffers | letter.buffers)
        named = {"partitions": group, "config": "" if lean else text, "config_id": identity(text)}
        return replace(letter, fields=letter.fields | named)

    def _understood(self, reply: Reply, group: list[int]) -> Outcome:
        if not isinstance(reply, Letter):
            return reply
        if reply.fields.get("missing"):
            return MISSING
        bits = self.fleet.config.secure_bits or 64
        length = self.parcel.length if self.parcel else 0
        try:
            said = reply_of(reply, group, self.call.stage, bits, length)
            if self.fleet.simulated():
                return said
            return replace(said, bytes_up=size_of(reply) if said.present else 0)
        except Refused as refused:
            return refused

    def replies(self) -> list[calls.Reply]:
        """One reply a host; of a host that gave none, its partitions as failed."""
        return [self._reply(k, group) for k, (_, group) in self.assignments.items()]

    def _reply(self, k: int, group: list[int]) -> calls.Reply:
        outcome = self.outcomes.get(k, Lost("left"))
        if isinstance(outcome, calls.Reply):
            return outcome
        name, reason = (
            (outcome.field, str(outcome)) if isinstance(outcome, Refused) else ("", outcome.reason)
        )
        return calls.Reply(failures=tuple(Failure(p, self.call.stage, name, reason) for p in group))
