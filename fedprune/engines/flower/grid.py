"""The port over a Flower grid: one message per host, or per host and stage of a secure sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flwr.serverapp import Grid

from fedprune.client.memory import ClientMemory
from fedprune.client.serving import Tick
from fedprune.codec.wire import Packet
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.engines.flower.announced import networked
from fedprune.engines.flower.asking import Asking, Request, ask
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.open_sums import Put, open_sums
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.port import Ask, Exchange, Port
from fedprune.secagg.messages import Call, Enclosure, StageReply, call_for, merged_replies
from fedprune.secagg.packets import call_packet, reply_of
from fedprune.secagg.secure_sum import secure_sums


def grid_port(
    grid: Grid, config: RunConfig, tick: Tick | None = None, memory: ClientMemory | None = None
) -> Port:
    """The port that asks the nodes of a Flower grid.

    A host that does not reply is asked once more, then each of its partitions counts as failed. So
    is a device that lacks the mask or the configuration, this time with both. A sum that is
    malformed or not finite is refused at once. `tick` is told how many more partitions have
    answered; what a simulation's clients remember is kept in `memory`, by default in this process.
    """
    fleet, held = Fleet(grid, config), memory or ClientMemory()
    secure = config.secure != "none"
    put = _sealed_sums(fleet, tick) if secure else open_sums(fleet, tick, held)

    def with_news(ask: Ask, aggregate: Aggregate) -> Aggregate:
        question, failures = ask.question, tuple(map(fleet.with_node, aggregate.failures))
        if question.kind == "evaluate":
            fleet.gathering = question.round < config.rounds
        # What comes before the first round has no row to be in: the news wait for one.
        failed, said = fleet.news.take() if KINDS[question.kind].weights else ((), ())
        told = aggregate.notices + said
        return replace(aggregate, failures=failures + failed, notices=told)

    def exchange(asks: Sequence[Ask]) -> list[Aggregate]:
        return [with_news(*each) for each in zip(asks, put(asks), strict=True)]

    return Port(
        *(Exchange(exchange), fleet.present),
        rehearsed=True,
        own_data=lambda: networked(grid) or not fleet.simulated(),
        federation=_federation(grid),
    )


def _federation(grid: Grid) -> str:
    """The federation that a run was submitted to; "" for a SuperLink that knows none."""
    named = str(getattr(getattr(grid, "run", None), "federation_id", "") or "")
    return "" if named.startswith("@none/") else named


def _sealed_sums(fleet: Fleet, tick: Tick | None) -> Put:
    """What puts questions to a fleet, one by one, and gives back the secure sum of the answers.

    A host that does not reply in a stage is asked once more; a device that lacks the mask or the
    configuration too, this time with both. What it said then, it says again. `tick` is told how
    many more partitions were asked for their vector.
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

    put = secure_sums(fleet.config, transport)
    return lambda asks: [put(each.question, each.partitions) for each in asks]


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
