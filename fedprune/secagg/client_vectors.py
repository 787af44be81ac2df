"""A client's answer as the vector that it masks, with its share of noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedprune.client.host import Host, with_edits
from fedprune.client.partition_answers import answered
from fedprune.codec.flags import flags_of
from fedprune.codec.model_digest import edits_in
from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.privacy.discretise import Noise
from fedprune.protocol.checks import check_summand
from fedprune.protocol.coded_answers import on_own_mask
from fedprune.protocol.form import Form
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.questions import decode_question
from fedprune.secagg.messages import Call
from fedprune.secagg.ring import Ring
from fedprune.secagg.shared_noise import noises_of
from fedprune.secagg.terms import Terms
from fedprune.secagg.vectors import Pieces, pieces_of, vector_of


@dataclass(frozen=True)
class SumQuestion:
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


def sum_question(host: Host, call: Call, terms: Terms, packet: Packet) -> SumQuestion:
    """The question that a packet holds, of a host's call under these terms."""
    host = with_edits(host, edits_in(packet["bits"]))
    question = decode_question(packet, host.layout, host.base)
    form = form_of(question, host.config, host.layout)
    noises = noises_of(question, form, host.config, host.layout)
    pieces = pieces_of(question.kind, form, host.config, len(terms.members), noises, call.coarse)
    open_ = flags_of(call.open, form.voters) if form.own else None
    return SumQuestion(host, question, form, pieces, noises, open_)


def vector_for(asked: SumQuestion, partition: int, bits: int) -> Ring:
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
