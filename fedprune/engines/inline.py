"""The engine of this process: every host is served here, one after the other."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from fedprune.client.host import Host, grouped, labels_of
from fedprune.client.memory import ClientMemory
from fedprune.client.serving import Tick, serve
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import broadcast
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Port
from fedprune.protocol.running_sum import summed
from fedprune.runtime.process import trim_memory
from fedprune.tasks.shards import data_digest


def inline_port(host: Host, tick: Tick | None = None, memory: ClientMemory | None = None) -> Port:
    """The port that serves every host in this process, one after the other.

    `tick` is told how many more partitions have answered; what clients remember is kept in
    `memory`, by default in this process alone.
    """
    held, parameters = memory or ClientMemory(), host.layout.parameters

    @functools.cache  # the loop asks several times a round, and they stay
    def present() -> Mapping[int, int]:
        return MappingProxyType(labels_of(host))

    data = functools.partial(data_digest, host.shards)
    if host.config.secure != "none":
        # Secure sums are made of what is above: they come in where they are wanted.
        from fedprune.engines.inline_sums import inline_sums

        return Port(inline_sums(host, tick), present, rehearsed=True, data=data)

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        trim_memory(parameters)
        sent = broadcast(question, host.config.wire, here=True)
        hosts = grouped(partitions, host.config).values()
        aggregate = summed(serve(host, sent.packet(group), group, tick, held) for group in hosts)
        return replace(aggregate, bytes_down=sent.size(partitions))

    model = host.model if host.device.type == "cpu" else None
    return Port(ask, present, rehearsed=True, data=data, model=model)
