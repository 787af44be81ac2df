"""A question as it is sent: encoded once for everyone, what each is sent of it, and read again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedprune.codec.bounded import Buffer
from fedprune.codec.masks import decode_mask
from fedprune.codec.model_digest import edits_in, mask_bits, model_digest
from fedprune.codec.wire import OWN_TYPES, Packet, head_of, pack
from fedprune.protocol.held_weights import BaseModel
from fedprune.protocol.messages import Question
from fedprune.protocol.question_fields import FIELDS
from fedprune.protocol.question_head import kind_in
from fedprune.protocol.question_weights import Received
from fedprune.runtime.json_text import text_of
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks

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


def decode_question(packet: Packet, layout: Layout, base: BaseModel | None = None) -> Question:
    """The question as the client sees it.

    Raises:
        Lacking: it names another one.
        ValueError: it is malformed, or bits or values do not fit the head or the layout. Nothing
            else is raised, whatever the packet holds.
    """
    head = head_of(packet)
    kind_in(head, "kind")  # first of all, as it says how to read the rest
    came = Received(packet, head, layout, *_skeleton(packet, head, layout, base), base)
    return Question(**{name: row.read(came, name) for name, row in FIELDS.items()})


def _skeleton(
    packet: Packet, head: Mapping[str, Any], layout: Layout, base: BaseModel | None
) -> tuple[Masks, Edits]:
    """Mask and edits of a question; nothing is unpacked that the layout has no tensor for."""
    bits, prunable = packet["bits"], {name: layout.shapes[name] for name in layout.prunable}
    most, lazy = sum(s.numel() for s in prunable.values()), base is not None and base.is_lazy
    masks = decode_mask(mask_bits(bits), most, prunable, packed=lazy)
    edits = edits_in(bits)
    if model_digest(masks, edits) != text_of(head, "mask"):
        raise ValueError("the mask is not the one that the question names")
    return masks, edits
