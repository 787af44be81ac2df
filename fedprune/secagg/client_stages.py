"""The clients' half of a secure sum: every partition masks its own vector, a host adds them up.

A worker of a simulation keeps nothing between the stages: a partition's secrets are derived from
a seed that it is given or derives again, so that any worker can serve any stage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from fedprune.client.host import Host, with_edits
from fedprune.client.partition_answers import answered
from fedprune.client.serving import Tick
from fedprune.codec.flags import flags_of
from fedprune.codec.model_digest import edits_in
from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.privacy.discretise import Noise
from fedprune.privacy.noise import Source, keyed_source, secret_source
from fedprune.protocol.broadcast import decode_question
from fedprune.protocol.checks import check_summand
from fedprune.protocol.client_privacy import silenced
from fedprune.protocol.form import Form
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import failure_of, on_own_mask
from fedprune.secagg.client import confirmed, masked_vector, revealed, shares_of
from fedprune.secagg.fixed_point import Ring
from fedprune.secagg.keys import Keys, Seeds, keys_and_signature, keys_of, seeds_of
from fedprune.secagg.messages import Call, StageReply, merged_replies
from fedprune.secagg.packets import reply_packet
from fedprune.secagg.primitives import derived
from fedprune.secagg.register import Register, check_vouched, vouched
from fedprune.secagg.shared_noise import fewest_left, noises_of, with_share
from fedprune.secagg.terms import Terms, terms_of
from fedprune.secagg.vectors import Pieces, pieces_of, vector_of

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

    By default a partition's secrets, `seeds`, are those that follow from the configuration, as a
    worker of a simulation keeps none; secret noise is the operating system's even then. In the
    stage "masked" there is the question, `packet`, and `tick` is told of every partition that was
    asked for its vector. A device that knows who is who has a `register`: keys of others count
    there only with a signature.

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
    return _each(work, partitions, partial(_STAGES[call.stage], work))


def _keys(s: _StageWork, p: int) -> StageReply:
    keys = keys_of(s.seeds(p), s.terms)
    return StageReply(
        keys={p: vouched(s.register, p, keys, s.terms) if s.register else keys.as_bytes}
    )


def _shares(s: _StageWork, p: int) -> StageReply:
    return StageReply(shares={p: shares_of(s.seeds(p), p, s.roster, s.terms)})


def _confirm(s: _StageWork, p: int) -> StageReply:
    told = s.call.summed, s.call.shared
    return StageReply(said={p: confirmed(s.seeds(p), p, s.roster, *told, s.terms)})


def _unmask(s: _StageWork, p: int) -> StageReply:
    told = s.call.sealed.get(p, {}), s.call.summed, s.call.shared
    return StageReply(shares={p: revealed(s.seeds(p), p, s.roster, *told, s.terms, s.call.said)})


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
    asked = _sum_question(s.host, s.call, s.terms, packet)

    def one(p: int) -> StageReply:
        vector = _vector_for(asked, p, s.terms.bits)
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


@dataclass(frozen=True)
class _SumQuestion:
    """The question of a sum, the form of its answers, and what they are made into.

    Of `noises` each adds a share; `open` are those of the coordinates that are voted on that have
    enough holders, or None: all.
    """

    host: Host
    question: Question
    form: Form
    pieces: Pieces
    noises: dict[str, Noise]
    open: Tensor | None


def _sum_question(host: Host, call: Call, terms: Terms, packet: Packet) -> _SumQuestion:
    """The question that a packet holds, of a host's call under these terms."""
    host = with_edits(host, edits_in(packet["bits"]))
    question = decode_question(packet, host.layout, host.base)
    form = form_of(question, host.config, host.layout)
    noises = noises_of(question, form, host.config, host.layout)
    pieces = pieces_of(question.kind, form, host.config, len(terms.members), noises, call.coarse)
    open_ = flags_of(call.open, form.voters) if form.own else None
    return _SumQuestion(host, question, form, pieces, noises, open_)


def _vector_for(asked: _SumQuestion, partition: int, bits: int) -> Ring:
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
