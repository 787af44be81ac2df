"""Questions as packets, and back: every field of a question is one row of one table.

How a whole question is sent, and to whom which part of it, is `fedprune.protocol.broadcast`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.codec.masks import decode_mask
from fedprune.codec.model_digest import edits_in, mask_bits, model_digest
from fedprune.codec.wire import Packet, head_of
from fedprune.protocol.held_weights import BaseModel
from fedprune.protocol.messages import Question
from fedprune.protocol.question_fields import FIELDS
from fedprune.protocol.question_head import kind_in
from fedprune.protocol.question_weights import Received
from fedprune.runtime.json_text import text_of
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks


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
