"""The adapters that a configuration gives a model before round one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedprune.adapters.coded import in_codes
from fedprune.adapters.factors import adapter_shapes, first_adapters
from fedprune.adapters.options import Adapting
from fedprune.adapters.targets import heads_trained, targets_of
from fedprune.structure.layout import Layout
from fedprune.tensors.models import SAVED_TYPE
from fedprune.tensors.named import Tensors


def begun_adapters(
    adapting: Adapting,
    model: nn.Module,
    output: Sequence[str],
    layout: Layout,
    weights: Mapping[str, Tensor],
    seed: int,
) -> Tensors:
    """The adapters before round one; none where the configuration wants none.

    Of a stack nothing is there yet: its factors are of rank 0. `weights` are those that training
    begins with.
    """
    if adapting.adapters == "none":
        return {}
    paths = targets_of(model, layout, adapting.targets)
    heads = heads_trained(model, output, layout)
    whole = tuple(n for n in heads if n.removesuffix(".weight") not in paths)
    rank = 0 if adapting.adapter_mean == "stack" else adapting.rank or 0
    return first_adapters(adapter_shapes(paths, whole, rank, layout), weights, seed)


def in_saved_type(
    weights: Tensors, model: nn.Module, names: Iterable[str] | None = None
) -> Tensors:
    """Weights in the type that the model's files have them in, where it is of fewer bits.

    All of them, or those of these names.
    """
    saved: torch.dtype | None = getattr(model, SAVED_TYPE, None)
    if saved is None:
        return weights
    those = weights if names is None else names
    return {**weights, **{n: weights[n].to(saved) for n in those}}


def frozen_for(adapting: Adapting, model: nn.Module, layout: Layout, weights: Tensors) -> Tensors:
    """Weights as they are frozen beside adapters, and as those merged with them are.

    In the type of the model's files, or in codes where ``--adapter-base`` says so.
    """
    if adapting.adapters == "none":
        return weights
    if adapting.adapter_base == "float32":
        return in_saved_type(weights, model)
    paths = targets_of(model, layout, adapting.targets)
    return in_codes(weights, paths, layout, adapting.adapter_base)
