"""The engine of this process: every host is served here, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedprune.client.host import House, Tick, bytes_down, grouped, labels_of, serve
from fedprune.protocol.messages import Folded, Question, summed
from fedprune.protocol.packets import encode_question
from fedprune.protocol.port import Port
from fedprune.tasks.shards import data_digest


def inline_port(house: House, tick: Tick | None = None) -> Port:
    """The port that serves every host in this process, one after the other."""

    def data() -> str:
        return data_digest(house.shards)

    if house.config.secure != "none":
        # Secure sums are made of what is above: they come in where they are wanted.
        from fedprune.engines.inline_sums import inline_sums

        return Port(inline_sums(house, tick), lambda: labels_of(house), rehearsed=True, data=data)

    def ask(question: Question, partitions: Sequence[int]) -> Folded:
        packet = encode_question(question, house.config.wire)
        hosts = grouped(partitions, house.config)
        folded = summed(serve(house, packet, group, tick) for group in hosts.values())
        down = bytes_down(packet, partitions, question.known, question.taught)
        return replace(folded, bytes_down=down)

    return Port(ask, lambda: labels_of(house), rehearsed=True, data=data)
