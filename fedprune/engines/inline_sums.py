"""Secure sums in this process: every host is served here, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from fedprune.client.host import Host, grouped
from fedprune.client.serving import Tick
from fedprune.config import RunConfig
from fedprune.config.terms import keys_follow
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.secagg.client_stages import serve_call
from fedprune.secagg.keys import Seeds, seeds_of
from fedprune.secagg.messages import Call, Enclosure, StageReply, Transport, merged_replies
from fedprune.secagg.secure_sum import secure_sums


def inline_sums(
    host: Host, tick: Tick | None = None
) -> Callable[[Question, Sequence[int]], Aggregate]:
    """What puts a question to this process's partitions and gives back their secure sum."""
    return secure_sums(host.config, inline_transport(host, tick))


def inline_transport(host: Host, tick: Tick | None = None) -> Transport:
    """Puts every stage to the hosts of this process."""
    seeds_in = seeds_for(host.config)

    def put(call: Call, partitions: Sequence[int], enclosed: Enclosure | None) -> StageReply:
        seeds, hosts = seeds_in(call.session), grouped(partitions, host.config).values()

        def served(group: list[int]) -> StageReply:
            packet = None if enclosed is None else enclosed.sent.packet(group)
            return serve_call(host, call, group, seeds, packet, tick)

        return merged_replies(served(group) for group in hosts)

    return put


def seeds_for(config: RunConfig) -> Callable[[bytes], Seeds]:
    """The partitions' secrets by sum: from the run's seed, or the operating system's.

    Those of the newest sum alone are kept.
    """
    if keys_follow(config):
        return lambda session: seeds_of(config, session)
    kept: dict[bytes, dict[int, bytes]] = {}

    def secret(session: bytes) -> Seeds:
        if session not in kept:
            kept.clear()
        drawn = kept.setdefault(session, {})
        return lambda partition: drawn.setdefault(partition, os.urandom(32))

    return secret
