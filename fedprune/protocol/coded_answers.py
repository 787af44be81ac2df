"""Answers as packets, and back: what a device sends of one partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedprune.codec.flags import flags_of, pack_flags, plain_flags, plain_flags_of
from fedprune.codec.wire import SCORE_TYPES, Packet, head_of, pack, saying, values_of
from fedprune.config.kinds import KINDS
from fedprune.options.refusal import Refused
from fedprune.protocol.messages import Answer, Question
from fedprune.runtime.json_text import number_at
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import gathered, scattered


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
