"""The clients' half of a secure sum: every partition masks its own vector, a host adds them up.

A worker of a simulation keeps nothing between the stages: a partition's secrets are derived from
a seed that it is given or derives again, so that any worker can serve any stage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedprune.client.host import Host
from fedprune.client.serving import Tick
from fedprune.codec.wire import Packet
from fedprune.privacy.noise import Source, keyed_source, secret_source
from fedprune.protocol.client_privacy import silenced
from fedprune.protocol.parts import failure_of
from fedprune.secagg.client import (
    confirmed,
    masked_vector,
    revealed,
    shares_of,
)
from fedprune.secagg.client_vectors import sum_question, vector_for
from fedprune.secagg.keys import Keys, keys_and_signature, keys_of
from fedprune.secagg.messages import Call, StageReply, merged_replies
from fedprune.secagg.packets import reply_packet
from fedprune.secagg.primitives import derived
from fedprune.secagg.register import Register, check_vouched, vouched
from fedprune.secagg.seeds import Seeds, seeds_of
from fedprune.secagg.shared_noise import fewest_left, with_share
from fedprune.secagg.terms import Terms, terms_of

log = logging.getLogger("fedprune")


@dataclass(frozen=True)
class _StageWork:
    """One stage, as a host serves it: what is asked, under which terms, with whose secrets.

    They are `kept` where they do not follow from the configuration, and shown with a signature
    where there is a `register`.
    """

    host: Host
    call: Call
    terms: Terms
    roster: dict[int, Keys]
    seeds: Seeds
    kept: bool
    register: Register | None


def serve_call(
    host: Host,
    call: Call,
    partitions: Sequence[int],
    seeds: Seeds | None = None,
    packet: Packet | None = None,
    tick: Tick | None = None,
    register: Register | None = None,
) -> StageReply:
    """What a host's partitions say in one stage; one that fails is left out and named.

    Args:
        host: where they are served.
        call: what is asked.
        partitions: of whom.
        seeds: their secrets; by default those that follow from the configuration, as a worker of a
            simulation keeps none. Secret noise is the operating system's even then.
        packet: the question, in the stage "masked".
        tick: told about every partition that was asked for its vector.
        register: who is who, on a device that knows: keys of others count only with a signature.

    Raises:
        ValueError: terms that nobody should agree to, or keys that somebody else may have made.
    """
    terms = terms_of(host.config, call.session, call.members)
    if register is not None:
        check_vouched(register, call.roster, terms)
    roster = {p: keys_and_signature(shown)[0] for p, shown in call.roster.items()}
    known, kept = seeds_of(host.config, call.session), seeds is not None
    work = _StageWork(host, call, terms, roster, seeds or known, kept, register)
    if call.stage == "masked":
        if packet is None:
            raise ValueError("the question is missing")
        return _masked(work, packet, partitions, tick)
    return _STAGES[call.stage](work, partitions)


def _keys(s: _StageWork, partitions: Sequence[int]) -> StageReply:
    def one(p: int) -> StageReply:
        keys = keys_of(s.seeds(p), s.terms)
        shown = vouched(s.register, p, keys, s.terms) if s.register else keys.as_bytes
        return StageReply(keys={p: shown})

    return _each(s, partitions, one)


def _shares(s: _StageWork, partitions: Sequence[int]) -> StageReply:
    def one(p: int) -> StageReply:
        return StageReply(shares={p: shares_of(s.seeds(p), p, s.roster, s.terms)})

    return _each(s, partitions, one)


def _confirm(s: _StageWork, partitions: Sequence[int]) -> StageReply:
    def one(p: int) -> StageReply:
        told = s.call.summed, s.call.shared
        return StageReply(said={p: confirmed(s.seeds(p), p, s.roster, *told, s.terms)})

    return _each(s, partitions, one)


def _unmask(s: _StageWork, partitions: Sequence[int]) -> StageReply:
    def one(p: int) -> StageReply:
        told = s.call.sealed.get(p, {}), s.call.summed, s.call.shared
        return StageReply(
            shares={p: revealed(s.seeds(p), p, s.roster, *told, s.terms, s.call.said)}
        )

    return _each(s, partitions, one)


_STAGES = {"keys": _keys, "shares": _shares, "confirm": _confirm, "unmask": _unmask}


def _each(
    s: _StageWork,
    partitions: Sequence[int],
    one: Callable[[int], StageReply],
    tick: Tick | None = None,
) -> StageReply:
    """What the partitions say, each weighed as if it had come from a device of its own.

    Why one failed is in the log on its side: it may quote what nobody else is to know.
    """

    def said(partition: int) -> StageReply:
        try:
            reply = one(partition)
            reply = replace(reply, bytes_up=reply_packet(reply).size())
        except Exception as error:  # whatever a client raises must not stop the others
            log.warning("partition %d drops out of a secure sum: %s", partition, error)
            failure = silenced(failure_of(partition, s.call.stage, error), s.host.config, error)
            reply = StageReply(failures=(failure,))
        if tick:
            tick(1)
        return reply

    return merged_replies(said(partition) for partition in partitions)


def _masked(
    s: _StageWork, packet: Packet, partitions: Sequence[int], tick: Tick | None
) -> StageReply:
    asked = sum_question(s.host, s.call, s.terms, packet)

    def one(p: int) -> StageReply:
        vector = vector_for(asked, p, s.terms.bits)
        if asked.noises:
            enough = fewest_left(len(s.terms.members), s.host.config)
            with_share(vector, asked.pieces, asked.noises, enough, _source(s, p))
        total = masked_vector(s.seeds(p), p, s.roster, s.call.shared, vector, s.terms)
        return StageReply(total=total, summed=(p,))

    return _each(s, partitions, one, tick)


def _source(s: _StageWork, partition: int) -> Source:
    """Where a partition's share of noise comes from.

    Of secrets that are kept, the same again: under one mask two vectors of different noise would
    show the difference.
    """
    secret = s.host.config.noise_source == "secret"
    if secret and not s.kept:
        return secret_source()
    key = derived(s.seeds(partition), "noise", s.terms.binding)
    return keyed_source(key, secret=secret)
