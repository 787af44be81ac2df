"""A question as it is sent: encoded once for everyone, and what each is sent of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import OWN_TYPES, Packet, pack
from fedprune.protocol.messages import Question
from fedprune.protocol.question_fields import FIELDS

_CAST = ("values", "factors")
"""Buffers in the type of the wire."""


@dataclass(frozen=True)
class Broadcast:
    """A question, encoded once for everyone who is asked.

    Attributes:
        common: what everyone is sent.
        own: by buffer, what of it each partition is sent.
        held: by buffer, the partitions that have it already.
        without_base: the same for who lacks the base model that it names; None: it names none.
    """

    common: Packet
    own: Mapping[str, Mapping[int, bytes]]
    held: Mapping[str, frozenset[int]]
    without_base: Callable[[], Broadcast] | None = None

    def for_who(self, *, lacks: bool) -> Broadcast:
        """The same for who holds the base model, or lacks it."""
        return self.without_base() if lacks and self.without_base else self

    def packet(self, partitions: Sequence[int], *, lean: bool = False) -> Packet:
        """What the host of these partitions is sent; `lean`: without what all of them have."""
        spared = {n for n, those in self.held.items() if lean and those.issuperset(partitions)}
        if not (spared or self.own):
            return self.common
        buffers = {n: data for n, data in self.common.buffers.items() if n not in spared}
        for name, parts in self.own.items():
            buffers[name] = b"".join(parts[p] for p in partitions if p in parts)
        return Packet(self.common.fields, buffers)

    def size(self, partitions: Iterable[int]) -> int:
        """Bytes for these partitions if each were a device, which is not sent what it has."""
        sizes = {name: len(data) for name, data in self.common.buffers.items()}
        asked, whole = list(partitions), self.common.size()
        spared = sum(len(had.intersection(asked)) * sizes[n] for n, had in self.held.items())
        own = sum(len(parts.get(p, b"")) for parts in self.own.values() for p in asked)
        return whole * len(asked) - spared + own


def broadcast(question: Question, wire: str, *, here: bool = False) -> Broadcast:
    """The question as it is sent, its weights in a type of the wire.

    With `here` it does not leave this process, and its buffers may be the weights' own memory.
    """
    head: dict[str, Any] = {}
    flats: dict[str, tuple[Tensor, str]] = {}
    coded: dict[str, Buffer] = {}
    own: dict[str, Mapping[int, bytes]] = {}
    held: dict[str, frozenset[int]] = {}
    for name, row in FIELDS.items():
        if row.said is not None and row.when(question):
            head[row.key or name] = row.said(question, name)
        data = row.data(question) if row.buffer else b""
        if isinstance(data, Tensor):
            kind = wire if row.buffer in _CAST else "fp32"
            flats[row.buffer] = (data, OWN_TYPES.get(data.dtype, kind) if kind == "fp32" else kind)
        elif isinstance(data, Mapping):
            own |= {row.buffer: data} if data else {}
        elif data:
            coded[row.buffer] = data
            held |= {row.buffer: getattr(question, row.held)} if row.held else {}
    packed = pack(head, flats)
    found = {**packed.buffers, **coded}
    buffers = found if here else {name: bytes(data) for name, data in found.items()}
    whole = functools.cache(
        lambda: broadcast(replace(question, base="", unlike=()), wire, here=here)
    )
    return Broadcast(Packet(packed.fields, buffers), own, held, whole if question.base else None)


def encode_question(question: Question, wire: str) -> Packet:
    """The whole question, for everyone whom it knows of."""
    sent = broadcast(question, wire)
    return sent.packet(sorted({p for parts in sent.own.values() for p in parts}))
