"""Secure sums over a Flower grid: one message per host and stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fedprune.client.serving import Tick
from fedprune.codec.wire import Packet
from fedprune.config.kinds import KINDS
from fedprune.engines.flower.asking import Asking, ask
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.requests import Request
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Question
from fedprune.secagg.messages import Call, Enclosure, StageReply, call_for, merged_replies
from fedprune.secagg.packets import call_packet, reply_of
from fedprune.secagg.secure_sum import secure_sums


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

    def transport(call: Call, partitions: Sequence[int], enclosed: Enclosure | None) -> StageReply:
        request = _request(fleet, call, enclosed)
        merged = [StageReply()]

        def take(group: list[int], said: StageReply | tuple[Failure, ...]) -> None:
            del group
            reply = said if isinstance(said, StageReply) else StageReply(failures=said)
            merged[0] = merged_replies([merged[0], reply])

        asking = Asking(fleet, request, dict(enumerate(fleet.assignments(partitions))), take)
        for again in (False, True):
            ask([asking], again=again, tick=tick if enclosed else None)
        asking.go_on(over=True)
        return replace(merged[0], resent=asking.down)

    return secure_sums(fleet.config, transport)


def _request(fleet: Fleet, call: Call, enclosed: Enclosure | None) -> Request[StageReply]:
    """A stage as it is put to every host, with the question where that goes along."""

    def packet(group: list[int], lean: bool) -> Packet:
        said = call_packet(call_for(call, group))
        if enclosed is None:
            return said
        sent = enclosed.sent.for_who(lacks=not fleet.lacking.isdisjoint(group))
        asked = sent.packet(group, lean=lean)
        return Packet({**asked.fields, **said.fields}, {**asked.buffers, **said.buffers})

    def read(reply: Packet, group: list[int]) -> StageReply:
        length = enclosed.length if enclosed else 0
        said = reply_of(reply, group, call.stage, fleet.config.secure_bits or 64, length)
        if fleet.simulated():
            return said
        return replace(said, bytes_up=reply.size() if said.present else 0)

    def resent(packet: Packet, group: list[int], again: bool) -> int:
        """What devices are sent a second time, or for want of the base model.

        The first time is counted by who asks, as if everyone had it.
        """
        if fleet.simulated():
            return 0
        if again or enclosed is None:
            return packet.size() if again else 0
        lacks = not fleet.lacking.isdisjoint(group)
        return enclosed.sent.for_who(lacks=lacks).size(group) - enclosed.sent.size(group)

    def most(group: list[int]) -> int:
        return 8 * len(group) * enclosed.length if enclosed else 0

    kind = KINDS[enclosed.question.kind].flower if enclosed else f"query.{call.stage}"
    return Request(kind, call.stage, packet, read, resent, most=most)
