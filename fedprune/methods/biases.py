"""Biases that make up for what was pruned, also in layers that had none."""

from __future__ import annotations

from dataclasses import replace

from fedprune.methods.factors import edited
from fedprune.options.refusal import ConfigError
from fedprune.server.round import Round
from fedprune.server.state import Model
from fedprune.structure.edits import Edit
from fedprune.structure.layers import layers_of
from fedprune.tensors.lazy import joined_to
from fedprune.tensors.named import Tensors


def with_biases(model: Model, r: Round, lost: Tensors) -> tuple[Model, Round]:
    """The model, and the round that fits it, with numbers added to biases.

    `lost`: (out,) by the weight's name. A layer without a bias gets one; of layers that share the
    weight each.

    Raises:
        ConfigError: a bias is frozen.
    """
    paths = _paths(r, lost)
    names = {path: _bias_of(r, path) for path in paths}
    edits = [Edit("bias", path) for path, name in names.items() if not name]
    fresh: Tensors = {}
    for path, weight in paths.items():
        name = names[path] or f"{path}.bias"
        like = model.weights[weight]
        before = fresh.get(name, model.weights.get(name, 0.0))
        fresh[name] = (lost[weight].to(like.device) + before).to(like.dtype)
    if edits:
        return edited(model, r, (*model.edits, *edits), fresh)
    return replace(model, weights=joined_to(model.weights, fresh)), r


def _paths(r: Round, lost: Tensors) -> dict[str, str]:
    """The layers whose biases take it on, and the weight of each.

    What a factor's columns lose is added to what the factor gives.
    """
    assert r.plan.model is not None  # runs have one
    path_of = {id(m): path for path, m in r.plan.model.named_modules()}
    found = layers_of(r.plan.model, list(lost))
    return {path_of[id(layer)]: name for name, layers in found.items() for layer in layers}


def _bias_of(r: Round, path: str) -> str:
    """The name of a layer's bias in the state; "" where it has none."""
    assert r.plan.model is not None
    bias = r.plan.model.get_submodule(path).bias
    names = [n for n, p in r.plan.model.named_parameters() if p is bias]
    if names and names[0] not in r.layout.shapes:
        raise ConfigError(
            f"score={r.config.score!r}: the bias {names[0]} is frozen, and would have to change; "
            f"allowed: one that is not, or another score"
        )
    return names[0] if names else ""
