"""What one partition sends, coded, and back; and how the server, or a host for it, adds it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedprune.codec.flags import flags_of, pack_flags, plain_flags, plain_flags_of
from fedprune.codec.wire import SCORE_TYPES, Packet, head_of, pack, saying, values_of
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate, loud_from
from fedprune.protocol.checks import check_summand
from fedprune.protocol.client_privacy import silenced
from fedprune.protocol.failures import Failure, plain
from fedprune.protocol.form import Form
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.running_sum import as_sum, norm_of, summed
from fedprune.protocol.sum_in_file import SumInFile
from fedprune.runtime.json_text import number_at
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import gathered, scattered


@dataclass(frozen=True)
class PartitionPart:
    """One partition's coded answer, as it is sent, or why there is none."""

    partition: int
    packet: Packet | None = None
    failure: Failure | None = None


def understood(packet: Packet, question: Question, form: Form) -> Answer:
    """The answer in a packet, its values cast back from the wire's type.

    One that was coded in this process, and that coding does not change, is not decoded.

    Raises:
        Refused: it is not of the form, or would spoil a sum.
        ValueError: it cannot be decoded.
    """
    if len(packet.head) > form.longest_head:
        raise Refused("reply", f"a head of {len(packet.head)} bytes; allowed: {form.longest_head}")
    if packet.size() > form.largest:
        raise Refused("reply", f"{packet.size()} bytes; allowed: {form.largest}")
    given = packet.said
    if form.own or not isinstance(given, Answer):
        given = decode_answer(packet, question, form.voters, own=form.own)
    check_summand(given.values, given.weight, given.totals, form, given.statistics)
    if question.limit and (norm := norm_of(given.values)) > question.limit:
        raise Refused("values", f"a change of norm {norm:.4g}, max-norm is {question.limit:.4g}")
    return given


def with_part(
    part: PartitionPart,
    question: Question,
    form: Form,
    config: RunConfig,
    before: Aggregate,
    outside: SumInFile | None = None,
) -> Aggregate:
    """The sum `before`, added to in place, with one more part.

    A part that does not count is left out and named; its bytes count, they were sent. Its values
    are added `outside` where that is given.
    """
    if part.packet is None:
        assert part.failure is not None  # one or the other
        return summed([before, Aggregate(failures=(part.failure,))])
    size = part.packet.size()
    try:
        given = understood(part.packet, question, form)
        how: dict[str, Any] = {"singly": form.singly, "held": form.own, "normed": form.normed}
        how["apart"] = outside is not None
        how["resamples"] = config.seed if form.resampled else None
        loud = loud_from(question.kind)
        total = as_sum(given, part.partition, size, before, loud=loud, **how)
    except Exception as error:  # whatever a malformed packet raises must not stop the others
        failure = silenced(failure_of(part.partition, question.kind, error), config)
        return summed([before, Aggregate(failures=(failure,), bytes_up=size)])
    if outside is not None:  # a disk that is full is not this client's failure
        outside.add(given.values, given.weight)
    return total


def failure_of(partition: int, phase: str, error: Exception) -> Failure:
    """One line about what went wrong with one partition."""
    where = error.field if isinstance(error, Refused) else ""
    text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
    return Failure(partition, phase, plain(where), plain(text))


def encode_answer(
    answer: Answer,
    question: Question,
    wire: str,
    score_wire: str = "fp32",
    *,
    own: bool = False,
    gen: torch.Generator | None = None,
    fixed: bool = False,
) -> Packet:
    """The answer as a packet.

    With `own` the values are left out that the client's own mask, its votes, removes. Types that
    round at random draw from `gen`. With `fixed` there are as many bytes whatever the answer says,
    so that they tell nothing: the numbers of the head are padded, votes are not coded.
    """
    totals = {n: float(x) for n, x in answer.totals.items()} if fixed else answer.totals
    head: dict[str, Any] = {"weight": float(answer.weight) if fixed else answer.weight}
    head |= {"totals": totals} | ({"flags": "plain"} if fixed and answer.votes is not None else {})
    coded = plain_flags if fixed else pack_flags
    votes = b"" if answer.votes is None else coded(answer.votes)
    values = answer.values
    if own and answer.votes is not None:
        values = values[on_own_mask(answer.votes, question)]
    statistics = SCORE_TYPES[score_wire]
    types = {"changes": wire, "statistics": statistics, "float32": "fp32"}
    flats = {"values": (values, types[KINDS[question.kind].values])}
    if answer.statistics is not None:
        flats["more"] = (answer.statistics, statistics)
    packet = pack(head, flats, votes, gen, fixed=fixed)
    if fixed or answer.votes is not None or flats.keys() != {"values"}:
        return packet
    if flats["values"][1] != "fp32":
        return packet
    return saying(packet, _as_it_is(answer))


def decode_answer(packet: Packet, question: Question, alive: int, *, own: bool = False) -> Answer:
    """The answer as the server would see it, its values cast back from the wire's type.

    They may be the packet's memory, and are not to be written to. `alive` is the length of the
    votes, if there are any; with `own` the values come on the client's own mask.

    Raises:
        ValueError: bits or values do not fit the question.
    """
    head = head_of(packet)
    flags = plain_flags_of if head.get("flags") == "plain" else flags_of
    votes = flags(packet["bits"], alive) if packet["bits"] else None
    values = values_of(packet, shared=True, head=head)
    if own:
        if votes is None:
            raise Refused("votes", "none, while the values come on the client's own mask")
        where = on_own_mask(votes, question)
        if values.numel() != int(where.sum()):
            raise Refused("values", f"{values.numel()} values on {int(where.sum())} coordinates")
        values = torch.zeros(where.numel()).masked_scatter_(where, values)
    more = values_of(packet, "more", shared=True, head=head) if packet["more"] else None
    return Answer(values, number_at(head, "weight"), _totals(head), votes, more)


def _as_it_is(answer: Answer) -> Answer | None:
    """What `decode_answer` makes of an answer whose values travel as they are; None: not known."""
    if answer.values.dtype != torch.float32 or answer.values.dim() != 1:
        return None
    numbers = (answer.weight, *answer.totals.values())
    if not all(type(x) is float or (type(x) is int and abs(x) < 2**53) for x in numbers):
        return None
    totals = {name: float(x) for name, x in answer.totals.items()}
    return Answer(answer.values.detach(), float(answer.weight), totals)


def _totals(head: Mapping[str, Any]) -> dict[str, float]:
    totals = head.get("totals")
    if not isinstance(totals, dict):
        raise Refused("totals", "no sums by name")
    return {name: number_at(totals, name) for name in totals}


def on_own_mask(votes: Tensor, question: Question) -> Tensor:
    """Which of a tuning answer's values lie on the client's own mask: what is free always does."""
    masks = question.changed_on
    own = scattered(votes, shapes_of(question.masks), masks)
    flags = {
        n: own.get(n, torch.ones(t.shape, dtype=torch.bool)) for n, t in question.weights.items()
    }
    return gathered(flags, masks)
