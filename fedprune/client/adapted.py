"""A client's model with adapters: merged to be measured and scored, apart to be trained."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

from torch import nn

from fedprune.adapters.factors import adapter_layout, effective
from fedprune.adapters.options import adapter_scale
from fedprune.client.context import ClientContext
from fedprune.config.kinds import KINDS
from fedprune.learning.local_training import prepared
from fedprune.protocol.messages import Question
from fedprune.scores.score import Shapes
from fedprune.tensors import load_into, shapes_of


def with_adapters(question: Question, client: ClientContext) -> tuple[Question, ClientContext]:
    """The same about a model without adapters.

    To train, it is about the adapters: they are the weights, of the model whose frozen weights are
    those of the question. Else it is about the merged weights.
    """
    q, scale = question, adapter_scale(client.config)
    if not KINDS[q.kind].changes:
        weights = effective(q.weights, q.adapters, q.masks, client.layout, scale)
        return replace(q, weights=weights, adapters={}), client
    load_into(client.model, q.weights)
    shapes = shapes_of(q.adapters)
    model, called = _apart(client, shapes, scale)
    from fedprune.adapters.layers import put_masks  # peft takes seconds: only who trains adapters

    put_masks(model, q.masks)
    layout = adapter_layout(shapes)
    client = replace(client, model=model, tuned=called, layout=layout)
    return replace(q, weights=q.adapters, masks={}, adapters={}), client


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
