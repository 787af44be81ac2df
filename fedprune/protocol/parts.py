"""What one partition sends, coded; and how the server, or a host for it, adds it to a sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedprune.codec.wire import Packet
from fedprune.config import RunConfig
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate, loud_from
from fedprune.protocol.checks import check_summand
from fedprune.protocol.client_privacy import silenced
from fedprune.protocol.coded_answers import decode_answer
from fedprune.protocol.failures import Failure, plain
from fedprune.protocol.form import Form
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.running_sum import as_sum, norm_of, summed
from fedprune.protocol.sum_in_file import SumInFile


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
