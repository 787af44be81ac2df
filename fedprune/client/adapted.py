"""A client's model with adapters: merged to be measured and scored, apart to be trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from fedprune.adapters.beginning import begun_adapters, frozen_for, in_saved_type
from fedprune.adapters.coded import CODE_BITS
from fedprune.adapters.factors import (
    adapter_layout,
    changed_by,
    effective,
    first_adapters,
    trained_shapes,
)
from fedprune.adapters.options import adapter_scale
from fedprune.client.context import ClientContext
from fedprune.config.kinds import KINDS
from fedprune.learning.preparation import prepared
from fedprune.protocol.messages import Question
from fedprune.scores.score import Shapes
from fedprune.tasks.task import output_of
from fedprune.tensors.lazy import shapes_of, some_of
from fedprune.tensors.models import hollow, load_into, load_some
from fedprune.tensors.named import Masks, Tensors, masked


def with_adapters(question: Question, client: ClientContext) -> tuple[Question, ClientContext]:
    """The same about a model without adapters.

    To train, it is about the adapters: they are the weights, of the model whose frozen weights are
    those of the question; to measure too where these are held in codes. Else it is about the merged
    weights.
    """
    q, scale = question, adapter_scale(client.config)
    bits = CODE_BITS.get(client.config.adapter_base)
    if not (KINDS[q.kind].changes or (bits and q.kind == "evaluate")):
        return replace(q, weights=_merged(q, client), adapters={}), client
    shapes, frozen, trained = shapes_of(q.adapters), q.weights, q.adapters
    if q.fresh:
        shapes = dict(trained_shapes(q.adapters, q.fresh, client.layout))
        frozen = _merged(q, client)
        where = (client.config.seed, q.round, client.partition)
        trained = first_adapters(shapes, q.adapters, *where)
    model, called = _apart(client, shapes, scale)
    from fedprune.adapters.layers import put_masks  # peft takes seconds: only who trains adapters

    if bits:
        _held_in_codes(client.model, model, frozen, bits)
    else:
        load_into(client.model, frozen)
    put_masks(model, q.masks)
    layout = adapter_layout(shapes)
    client = replace(client, model=model, tuned=called, layout=layout)
    return replace(q, weights=trained, masks={}, adapters={}, fresh=0), client


def _merged(question: Question, client: ClientContext) -> Tensors:
    """The weights that the server has merged, bit for bit, whatever type the frozen came in."""
    q, c = question, client.config
    rounded = () if c.adapter_base in CODE_BITS else changed_by(q.adapters)
    frozen = in_saved_type(q.weights, client.model, rounded)
    return effective(frozen, q.adapters, q.masks, client.layout, adapter_scale(c))


def _held_in_codes(own: nn.Module, apart: nn.Module, frozen: Tensors, bits: int) -> None:
    """Let two models that share weights have these: in codes where the layers have factors."""
    from fedprune.adapters.layers import lora_layers, put_codes

    put_codes(apart, frozen, bits)
    weights = {f"{path}.weight": own.get_submodule(path) for path in lora_layers(apart)}
    for module in weights.values():
        layer: Any = module
        layer.weight.data = hollow(layer.weight)
    load_some(own, some_of(frozen, [n for n in frozen if n not in weights]))


_APART: WeakKeyDictionary[nn.Module, tuple[object, nn.Module, nn.Module]] = WeakKeyDictionary()
"""Of a model the newest one that shares its weights and has adapters, and what is called of it."""


def _apart(client: ClientContext, shapes: Shapes, scale: float) -> tuple[nn.Module, nn.Module]:
    key = (tuple(sorted(shapes.items())), scale)
    known = _APART.get(client.model)
    if known is None or known[0] != key:
        from fedprune.adapters.layers import lora_copy

        model = lora_copy(client.model, shapes, scale)
        _APART[client.model] = known = key, model, prepared(model, client.config)
    return known[1], known[2]


def trial_adapters(
    client: ClientContext, weights: Tensors, masks: Masks
) -> tuple[dict[str, Any], Masks]:
    """What a question to train says in a trial of adapters and of the weights beside them.

    With the masks that make it compute all. Nothing, and the masks as they are, where there are
    none.
    """
    c = client.config
    output = output_of(client.task, client.model)
    adapters = begun_adapters(c, client.model, output, client.layout, weights, c.seed)
    if not adapters:
        return {}, masks
    cut = {name: mask.clone() for name, mask in masks.items()}
    for mask in cut.values():
        mask.view(-1)[0] = False
    fresh = (c.rank or 0) if c.adapter_mean == "stack" else 0
    frozen = masked(frozen_for(c, client.model, client.layout, weights), cut)
    return {"weights": frozen, "adapters": adapters, "fresh": fresh}, cut
