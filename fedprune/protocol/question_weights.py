"""A question's weights: kept values, or a base model's digest and what differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedprune.codec.wire import Packet, values_of
from fedprune.config.kinds import KINDS
from fedprune.protocol.held_weights import BaseModel, Lacking
from fedprune.protocol.messages import Question
from fedprune.protocol.question_head import kind_in
from fedprune.runtime.json_text import text_of, texts_of
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import LazyTensors, in_memory, joined_to, shapes_of, some_of
from fedprune.tensors.named import (
    Masks,
    Tensors,
    count_kept,
    cuts,
    gathered,
    masked,
    scattered,
    whole_of,
)


@dataclass(frozen=True)
class Received:
    """A question's packet as it came, and what is read first, for all that is read with it."""

    packet: Packet
    head: Mapping[str, Any]
    layout: Layout
    masks: Masks
    edits: Edits
    base: BaseModel | None = None


def kept_weights(question: Question) -> Tensor:
    """The values that a question carries, flat: of kept weights, and no base model's."""
    told = question.weights if KINDS[question.kind].weights else {}
    if question.base:
        told = some_of(told, question.unlike)
    whole = None if cuts(question.masks) else whole_of(told)
    return gathered(told, question.masks) if whole is None else whole


def told_weights(came: Received, name: str) -> Tensors:
    """All weights that a question says, 0.0 where removed.

    Raises:
        Lacking: it names a base model that is not here.
        ValueError: there are not as many values as its mask keeps.
    """
    del name
    shapes = came.layout.shapes if KINDS[kind_in(came.head, "kind")].weights else {}
    held = _held(came) if shapes else {}
    told = {n: s for n, s in shapes.items() if n not in held}
    by_one = not in_memory(held)
    flat = values_of(came.packet, shared=True, head=came.head, wide=not by_one)
    spread = _spread if by_one else partial(scattered, shared=True)
    return joined_to(held, spread(flat, told, came.masks))


def _spread(flat: Tensor, shapes: Mapping[str, torch.Size], masks: Masks) -> LazyTensors:
    """The inverse of `gathered`, each tensor made of the flat values when asked for, float32."""
    bare = {n: torch.empty(s, device="meta") for n, s in shapes.items()}
    over = some_of(masks, [n for n in shapes if n in masks])
    places, end = dict[str, int](), 0
    for name in sorted(shapes):
        places[name] = end
        end += count_kept(some_of(over, [name])) if name in over else shapes[name].numel()
    if flat.numel() != end:
        raise ValueError(f"expected {end} values, got {flat.numel()}")

    def made(name: str) -> Tensor:
        here, begin = some_of(over, [name] if name in over else []), places[name]
        size = count_kept(here) if here else shapes[name].numel()
        part = flat[begin : begin + size].float()
        return scattered(part, {name: shapes[name]}, dict(here.items()), shared=True)[name]

    return LazyTensors(bare, made)


def _held(came: Received) -> Tensors:
    """The tensors that a question says by naming a base model."""
    wanted = text_of(came.head, "base", "")
    if not wanted:
        return {}
    unlike, base = set(texts_of(came.head, "unlike")), came.base
    like = {n: shape for n, shape in came.layout.shapes.items() if n not in unlike}
    here = shapes_of(base.weights) if base is not None and base.digest == wanted else {}
    if base is None or not like.items() <= here.items():
        raise Lacking(f"base: {wanted[:16]!r} is not the base model that is here")
    if base.is_lazy:
        return masked(some_of(base.weights, like), came.masks)
    if kind_in(came.head, "kind") in _READ_ONCE or "adapters" in came.head:
        masks = came.masks  # and not what came, which is let go of when it has been read
        return LazyTensors(some_of(base.weights, like), lambda n: base.under(n, masks), base)
    return {n: base.under(n, came.masks) for n in like}


_READ_ONCE = ("score", "evaluate")
"""Questions whose weights go into the resident model, a tensor after the other, and no further.

So do those of all questions with adapters, beside which they are frozen.
"""
