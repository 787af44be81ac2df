"""The clients' half of a secure sum: every partition masks its own vector, a host adds them up.

A worker of a simulation keeps nothing between the stages: a partition's secrets are derived from
a seed that it is given or derives again, so that any worker can serve any stage.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedprune.client.host import Host, with_edits
from fedprune.client.partition_answers import answered
from fedprune.client.serving import Tick
from fedprune.codec.flags import flags_of
from fedprune.codec.model_digest import edits_in
from fedprune.codec.wire import Packet
from fedprune.config import RunConfig
from fedprune.options.refusal import Refused
from fedprune.privacy.discretise import Noise
from fedprune.privacy.noise import Source, keyed_source, secret_source
from fedprune.protocol.checks import check_summand
from fedprune.protocol.client_privacy import silenced
from fedprune.protocol.coded_answers import on_own_mask
from fedprune.protocol.forms import Form, form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import failure_of
from fedprune.protocol.questions import decode_question
from fedprune.secagg.client import (
    confirmed,
    masked_vector,
    revealed,
    shares_of,
)
from fedprune.secagg.keys import Keys, keys_and_signature, keys_of
from fedprune.secagg.messages import (
    Call,
    StageReply,
    merged_replies,
    reply_packet,
)
from fedprune.secagg.primitives import derived
from fedprune.secagg.register import Register, check_vouched, vouched
from fedprune.secagg.ring import Ring
from fedprune.secagg.shared_noise import fewest_left, noises_of, with_share
from fedprune.secagg.terms import Terms, terms_of
from fedprune.secagg.vectors import Pieces, pieces_of, vector_of

log = logging.getLogger("fedprune")

Seeds = Callable[[int], bytes]
"""A partition's 32 secret bytes for one sum: the same in all of its stages."""


def seeds_of(config: RunConfig, session: bytes) -> Seeds:
    """Seeds that follow from the configuration's: to study, not to hide."""

    def seed(partition: int) -> bytes:
        text = f"{config.seed}|secure|{session.hex()}|{partition}"
        return hashlib.sha256(text.encode()).digest()

    return seed


def seeds_from(secret: bytes, session: bytes) -> Seeds:
    """Seeds that follow from a device's secret for one sum: one for each of its partitions."""

    def seed(partition: int) -> bytes:
        return derived(secret, f"partition {partition}", session)

    return seed


@dataclass(frozen=True)
class _Sitting:
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
    sitting = _Sitting(host, call, terms, roster, seeds or known, kept, register)
    if call.stage == "masked":
        if packet is None:
            raise ValueError("the question is missing")
        return _masked(sitting, packet, partitions, tick)
    return _STAGES[call.stage](sitting, partitions)


def _keys(s: _Sitting, partitions: Sequence[int]) -> StageReply:
    def one(p: int) -> StageReply:
        keys = keys_of(s.seeds(p), s.terms)
        shown = vouched(s.register, p, keys, s.terms) if s.register else keys.as_bytes
        return StageReply(keys={p: shown})

    return _each(s, partitions, one)


def _shares(s: _Sitting, partitions: Sequence[int]) -> StageReply:
    def one(p: int) -> StageReply:
        return StageReply(shares={p: shares_of(s.seeds(p), p, s.roster, s.terms)})

    return _each(s, partitions, one)


def _confirm(s: _Sitting, partitions: Sequence[int]) -> StageReply:
    def one(p: int) -> StageReply:
        told = s.call.summed, s.call.shared
        return StageReply(said={p: confirmed(s.seeds(p), p, s.roster, *told, s.terms)})

    return _each(s, partitions, one)


def _unmask(s: _Sitting, partitions: Sequence[int]) -> StageReply:
    def one(p: int) -> StageReply:
        told = s.call.sealed.get(p, {}), s.call.summed, s.call.shared
        return StageReply(
            shares={p: revealed(s.seeds(p), p, s.roster, *told, s.terms, s.call.said)}
        )

    return _each(s, partitions, one)


_STAGES = {"keys": _keys, "shares": _shares, "confirm": _confirm, "unmask": _unmask}


def _each(
    s: _Sitting,
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


@dataclass(frozen=True)
class _Asked:
    """The question of a sum, and what its answers are made into.

    Attributes:
        host: where it is answered.
        question: what is asked.
        form: of the answers.
        pieces: of their vectors.
        noises: what each adds a share of.
        open: which of the coordinates that are voted on have enough holders, or None: all.
    """

    host: Host
    question: Question
    form: Form
    pieces: Pieces
    noises: dict[str, Noise]
    open: Tensor | None


def _masked(
    s: _Sitting, packet: Packet, partitions: Sequence[int], tick: Tick | None
) -> StageReply:
    asked = _asked(s, packet)

    def one(p: int) -> StageReply:
        vector = vector_for(asked, p, s.terms.bits)
        if asked.noises:
            enough = fewest_left(len(s.terms.members), s.host.config)
            with_share(vector, asked.pieces, asked.noises, enough, _source(s, p))
        total = masked_vector(s.seeds(p), p, s.roster, s.call.shared, vector, s.terms)
        return StageReply(total=total, summed=(p,))

    return _each(s, partitions, one, tick)


def _source(s: _Sitting, partition: int) -> Source:
    """Where a partition's share of noise comes from.

    Of secrets that are kept, the same again: under one mask two vectors of different noise would
    show the difference.
    """
    secret = s.host.config.noise_source == "secret"
    if secret and not s.kept:
        return secret_source()
    key = derived(s.seeds(partition), "noise", s.terms.binding)
    return keyed_source(key, secret=secret)


def _asked(s: _Sitting, packet: Packet) -> _Asked:
    host = with_edits(s.host, edits_in(packet["bits"]))
    question = decode_question(packet, host.layout, host.base)
    form = form_of(question, host.config, host.layout)
    noises = noises_of(question, form, host.config, host.layout)
    pieces = pieces_of(
        question.kind, form, host.config, len(s.terms.members), noises, s.call.coarse
    )
    open_ = flags_of(s.call.open, form.voters) if form.own else None
    return _Asked(host, question, form, pieces, noises, open_)


def vector_for(asked: _Asked, partition: int, bits: int) -> Ring:
    """A partition's answer as a vector, refused before it is masked if it would spoil the sum."""
    given = answered(asked.host, asked.question, partition)
    check_summand(given.values, given.weight, given.totals, asked.form, given.statistics)
    held = None
    if asked.open is not None:
        given, held = _among_holders(given, asked.question, asked.open)
    return vector_of(given, asked.pieces, bits, held)


def _among_holders(answer: Answer, question: Question, open_: Tensor) -> tuple[Answer, Tensor]:
    """The answer without what too few others hold, and what it then counts for where.

    A sum over one or two clients would show what they hold (Per-element Secure Aggregation,
    arXiv 2508.04285), and a server cannot withhold what it has seen.
    """
    if answer.votes is None:
        raise Refused("votes", "none, while the values come on the client's own mask")
    shown = answer.votes & open_
    values = answer.values.masked_fill(~on_own_mask(shown, question), 0.0)
    return replace(answer, values=values), shown.double() * answer.weight
