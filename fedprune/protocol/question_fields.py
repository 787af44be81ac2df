"""How every field of a question travels: one row of one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from fedprune.adapters.factors import check_adapters
from fedprune.codec.bounded import Buffer, shapes_in
from fedprune.codec.flags import counted_of, pack_rungs, pair, rungs_of
from fedprune.codec.masks import decode_mask
from fedprune.codec.model_digest import bits_of, mask_bits, model_digest
from fedprune.codec.wire import digest_of, values_of
from fedprune.learning.candidates import as_table, from_table
from fedprune.learning.regime import as_said, regime_in
from fedprune.protocol.form import fitting
from fedprune.protocol.messages import Question
from fedprune.protocol.question_head import (
    amount_in,
    count_in,
    flag_in,
    grow_in,
    kind_in,
    part_in,
    rank_in,
    share_in,
    share_or_none_in,
)
from fedprune.protocol.question_weights import Received, kept_weights, told_weights
from fedprune.runtime.json_text import text_of, texts_of
from fedprune.streaming.packed import PackedMasks
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Tensors, count, count_kept, gathered, scattered

_Data = Tensor | Buffer | Mapping[int, bytes]
"""What fills a buffer: flat values, to be cast; bytes; or each client's own bytes."""


@dataclass(frozen=True)
class Field:
    """How one field of a question travels: in the head, in a buffer, or with a part in both.

    Attributes:
        read: its value, of what came and the field's name; raises ValueError.
        said: what the head says of it.
        when: whether the head says so.
        key: where in the head; "": under the field's name.
        buffer: the buffer that it fills; "": none.
        data: with what.
        held: the question's field that names the partitions that have this buffer already.
    """

    read: Callable[[Received, str], Any]
    said: Callable[[Question, str], Any] | None = getattr
    when: Callable[[Question], Any] = lambda _: True
    key: str = ""
    buffer: str = ""
    data: Callable[[Question], _Data] = lambda _: b""
    held: str = ""


def _in_head(
    read: Callable[[Mapping[str, Any], str], Any], when: Callable[[Question], Any] | None = None
) -> Field:
    """A field that the head says as it is: always, or else it is as by default."""

    def found(came: Received, name: str) -> Any:
        said = when is None or name in came.head
        return read(came.head, name) if said else _DEFAULTS[name]

    return Field(found, when=when or (lambda _: True))


_DEFAULTS = {f.name: f.default for f in fields(Question)}


def _bits_of_masks(question: Question) -> bytes:
    """The encoded mask and edits. A mask of which eight flags are a byte lies there from now on.

    Of a large model it would be twice in memory until all have answered.
    """
    bits = bits_of(question.masks, question.edits)
    if isinstance(question.masks, PackedMasks):
        coded = decode_mask(mask_bits(bits), count(question.masks), packed=True)
        question.masks.lie_where(coded)
    return bits


def _shapes_given(question: Question, name: str) -> dict[str, list[int]]:
    return {n: list(t.shape) for n, t in getattr(question, name).items()}


def _given(came: Received, name: str) -> Tensors:
    shapes = shapes_in(came.head, name)
    flat = values_of(came.packet, "more", shared=True, head=came.head)
    return scattered(flat, shapes, fitting(shapes, came.masks))


def _adapters(came: Received, name: str) -> Tensors:
    if name not in came.head:
        return {}
    shapes = shapes_in(came.head, name)
    check_adapters(shapes, came.layout)
    return scattered(values_of(came.packet, "factors", head=came.head), shapes, {})


def _teacher(came: Received, name: str) -> bytes:
    teacher = bytes(came.packet[name])
    if digest_of(teacher) != text_of(came.head, name, ""):
        raise ValueError("the teacher is not the one that the question names")
    return teacher


def _rungs(came: Received, name: str) -> Tensors:
    if not came.packet[name]:
        return {}
    flat = rungs_of(came.packet[name], count_kept(came.masks))
    return scattered(flat, shapes_of(came.masks), came.masks)


FIELDS: dict[str, Field] = {
    "kind": _in_head(kind_in),
    "round": _in_head(count_in),
    "weights": Field(told_weights, None, buffer="values", data=kept_weights),
    "score": _in_head(text_of),
    "ask": _in_head(count_in),
    "names": _in_head(texts_of),
    "given": Field(
        _given,
        _shapes_given,
        buffer="more",
        data=lambda q: gathered(q.given, fitting(shapes_of(q.given), q.masks)),
    ),
    "dense": _in_head(flag_in),
    "sparsity": _in_head(share_or_none_in),
    "lr": _in_head(amount_in),
    "part": _in_head(part_in),
    "progress": _in_head(share_in),
    "masks": Field(
        lambda came, _: came.masks,
        lambda q, _: model_digest(q.masks, q.edits),
        key="mask",
        buffer="bits",
        data=_bits_of_masks,
        held="known",
    ),
    "edits": Field(lambda came, _: came.edits, None),  # its bits are with those of the masks
    "adapters": Field(
        _adapters,
        _shapes_given,
        lambda q: q.adapters,
        buffer="factors",
        data=lambda q: gathered(q.adapters, {}) if q.adapters else b"",
    ),
    "fresh": _in_head(rank_in, lambda q: q.fresh),
    "grow": _in_head(grow_in, lambda q: q.grow),
    "exchange": _in_head(share_in, lambda q: q.grow or q.extrude),
    "extrude": _in_head(amount_in, lambda q: q.extrude),
    "turn": _in_head(share_in, lambda q: q.grow),
    "regime": Field(
        lambda came, name: regime_in(came.head.get(name, {})),
        lambda q, _: as_said(q.regime),
        lambda q: not q.regime.plain,
    ),
    "again": _in_head(count_in, lambda q: q.again),
    "base": _in_head(text_of, lambda q: q.base),
    "unlike": _in_head(texts_of, lambda q: q.base),
    "teacher": Field(
        _teacher,
        lambda q, _: digest_of(q.teacher),
        lambda q: q.teacher,
        buffer="teacher",
        data=lambda q: q.teacher,
        held="taught",
    ),
    "distil": _in_head(amount_in, lambda q: q.teacher),
    "limit": _in_head(amount_in, lambda q: q.limit),
    "candidates": Field(
        lambda came, name: from_table(came.head.get(name, ()), sorted(came.layout.shapes)),
        lambda q, _: as_table(q.candidates, sorted(q.weights)),
        lambda q: q.candidates,
    ),
    "rungs": Field(
        _rungs,
        None,
        buffer="rungs",
        data=lambda q: pack_rungs(gathered(q.rungs, q.masks)) if q.rungs else b"",
    ),
    "counted": Field(
        lambda came, name: counted_of(came.packet[name]),
        None,
        buffer="counted",  # nobody is told of others when they took part
        data=lambda q: {p: pair(p, at) for p, at in sorted(q.counted.items())},
    ),
}
"""The fields of a question in the order in which the head says them, and how each travels. What
partitions have already, `known` and `taught`, does not."""

HELD = {row.buffer: row.key or name for name, row in FIELDS.items() if row.held}
"""Buffers that are kept by who is sent them, and where the head says which one is meant."""
