"""Questions, answers, and how answers become one sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedprune.compression.masks import decode_mask, encode_mask, mask_digest
from fedprune.compression.wire import Packet, flags_of, head_of, pack, pack_flags, values_of
from fedprune.pruning.layout import Layout
from fedprune.tensors import Masks, Tensors, count_kept, kept, spread


@dataclass(frozen=True)
class Question:
    """What the server asks: the model as it is, its mask, and what to do.

    Attributes:
        kind: "score", "tune" or "evaluate".
        round: from 1.
        weights: the global model's state, zero where a mask is False.
        masks: True = kept, for every prunable tensor.
        score: which statistics, for "score".
        sparsity: for "score": clients vote with their own mask of this sparsity; None: no votes.
        lr: learning rate, for "tune".
        part: "validation" or "test", for "evaluate".
        known: partitions that hold this mask already.
    """

    kind: str
    round: int
    weights: Tensors
    masks: Masks
    score: str = ""
    sparsity: float | None = None
    lr: float = 0.0
    part: str = ""
    known: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Answer:
    """One client's release.

    Attributes:
        values: flat float32 summand on kept coordinates ("score": of the prunable tensors,
            "tune": the change of the whole state); empty for "evaluate".
        weight: factor of `values` in the sum (labels, when a mean is weighted by them).
        totals: named sums that simply add up: loss, correct, count.
        votes: the client's own mask on the kept coordinates, flat, or None.
    """

    values: Tensor
    weight: float
    totals: dict[str, float]
    votes: Tensor | None = None


@dataclass(frozen=True)
class Failure:
    """A partition whose answer does not count, and why."""

    partition: int
    phase: str
    field: str
    reason: str


class Refused(ValueError):
    """An answer that came and does not count; carries the field that is wrong."""

    def __init__(self, field_: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field_


@dataclass(frozen=True)
class Folded:
    """Answers added up, in the order of partitions and then of hosts.

    Attributes:
        total: flat float64 Σ weight · values; None if nobody answered.
        weight: Σ weight.
        totals: summed totals.
        votes: flat int64 counts of votes per kept coordinate, or None.
        answered: the partitions that count.
        failures: those that do not.
        bytes_up: what the answers that came weighed on the wire.
        bytes_down: what the question weighed for everyone who was asked.
    """

    total: Tensor | None = None
    weight: float = 0.0
    totals: dict[str, float] = field(default_factory=dict)
    votes: Tensor | None = None
    answered: tuple[int, ...] = ()
    failures: tuple[Failure, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0


_NOBODY = Folded()


def summed(pieces: Iterable[Folded]) -> Folded:
    """Several sums as one, added in the order given: pass them in the order of hosts.

    The pieces are left as they are.
    """
    out = Folded()
    ours: list[Tensor] = []  # made here, so that the next piece may be added in place

    def plus(left: Tensor | None, right: Tensor | None) -> Tensor | None:
        if left is None or right is None:
            return right if left is None else left
        if any(left is tensor for tensor in ours):
            return left.add_(right)
        ours.append(left + right)
        return ours[-1]

    for piece in pieces:
        out = Folded(
            plus(out.total, piece.total),
            out.weight + piece.weight,
            _added(out.totals, piece.totals),
            plus(out.votes, piece.votes),
            out.answered + piece.answered,
            out.failures + piece.failures,
            out.bytes_up + piece.bytes_up,
            out.bytes_down + piece.bytes_down,
        )
    return out


def as_sum(answer: Answer, partition: int, size: int, before: Folded = _NOBODY) -> Folded:
    """One client's answer of `size` bytes as a sum of one, or added to the answers `before` it.

    The tensors of `before` are added to in place.
    """
    votes = before.votes
    if answer.votes is not None:
        votes = _with(before.votes, answer.votes, 1, torch.int64)
    return Folded(
        _with(before.total, answer.values, answer.weight, torch.float64),
        before.weight + answer.weight,
        _added(before.totals, answer.totals),
        votes,
        (*before.answered, partition),
        before.failures,
        before.bytes_up + size,
        before.bytes_down,
    )


_CHUNK = 2**17
"""Values that are widened at a time: what stays in the processor's cache is added much faster."""


def _with(total: Tensor | None, values: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    if total is None:
        return values.to(dtype, copy=True).mul_(factor)
    for part, more in zip(total.split(_CHUNK), values.split(_CHUNK), strict=True):
        part.add_(more.to(dtype, copy=True).mul_(factor))
    return total


def _added(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {k: left.get(k, 0.0) + right.get(k, 0.0) for k in {**left, **right}}


TOTALS = {
    "score": {"count"},
    "tune": {"loss", "count"},
    "evaluate": {"loss", "correct", "count"},
}
"""The named sums that an answer of each kind carries."""


def expected_values(kind: str, masks: Mapping[str, Tensor], layout: Layout) -> int:
    """How many values an answer of this kind must carry."""
    alive = count_kept(masks)
    free = sum(s.numel() for n, s in layout.shapes.items() if n not in masks)
    return {"score": alive, "tune": alive + free, "evaluate": 0}[kind]


def check(
    values: Tensor,
    weight: float,
    totals: Mapping[str, float],
    kind: str,
    masks: Masks,
    layout: Layout,
) -> None:
    """Refuse a summand that would spoil the sum.

    Raises:
        Refused: the field (a tensor's name, "weight", "totals") and the reason.
    """
    expected = expected_values(kind, masks, layout)
    if values.numel() != expected:
        raise Refused("values", f"wrong shape: {values.numel()} values, expected {expected}")
    if not (math.isfinite(weight) and weight > 0):
        raise Refused("weight", f"{weight} is not a positive number")
    _check_totals(totals, kind)
    if not _finite(values):
        raise Refused(_not_finite(values, kind, masks, layout), "NaN or infinite")


def _finite(values: Tensor) -> bool:
    # The extremes are NaN if any value is; unlike torch.isfinite this reads the values once.
    return not values.numel() or all(math.isfinite(v) for v in torch.aminmax(values))


def _check_totals(totals: Mapping[str, float], kind: str) -> None:
    if totals.keys() != TOTALS[kind]:
        raise Refused("totals", f"{sorted(totals)}, expected {sorted(TOTALS[kind])}")
    for name, value in totals.items():
        if not math.isfinite(value):
            raise Refused(name, f"{value} is not finite")
        if name != "loss" and value < 0:
            raise Refused(name, f"{value} is negative")


def _not_finite(values: Tensor, kind: str, masks: Masks, layout: Layout) -> str:
    names = masks if kind == "score" else layout.shapes
    spots = spread(values, {n: layout.shapes[n] for n in names}, masks)
    return next(n for n, t in spots.items() if not torch.isfinite(t).all())


def encode_question(question: Question, wire: str) -> Packet:
    """The question as a packet; its mask is in `bits`, for those who lack it."""
    head = {
        "kind": question.kind,
        "round": question.round,
        "score": question.score,
        "sparsity": question.sparsity,
        "lr": question.lr,
        "part": question.part,
        "mask": mask_digest(question.masks),
    }
    values = kept(question.weights, question.masks)
    return pack(head, values, wire, encode_mask(question.masks))


def decode_question(packet: Packet, layout: Layout) -> Question:
    """The question as the client sees it.

    Raises:
        ValueError: bits or values do not fit the head or the layout.
    """
    head = head_of(packet)
    masks = decode_mask(bytes(packet.bits))
    if mask_digest(masks) != head["mask"]:
        raise ValueError("the mask is not the one that the question names")
    return Question(
        head["kind"],
        head["round"],
        spread(values_of(packet, shared=True), layout.shapes, masks),
        masks,
        head["score"],
        head["sparsity"],
        head["lr"],
        head["part"],
    )


def encode_answer(answer: Answer, kind: str, wire: str) -> Packet:
    """The answer as a packet. Statistics travel as fp32 whatever the wire's type."""
    head = {"weight": answer.weight, "totals": answer.totals}
    votes = b"" if answer.votes is None else pack_flags(answer.votes)
    return pack(head, answer.values, wire if kind == "tune" else "fp32", votes)


def decode_answer(packet: Packet, alive: int) -> Answer:
    """The answer as the server would see it, its values cast back from the wire's type.

    They may be the packet's memory, and are not to be written to.

    Args:
        packet: what came.
        alive: how many coordinates the mask keeps: the length of the votes, if there are any.
    """
    head = head_of(packet)
    votes = flags_of(packet.bits, alive) if packet.bits else None
    return Answer(values_of(packet, shared=True), float(head["weight"]), head["totals"], votes)
