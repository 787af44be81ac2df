"""Floating-point operations of the prunable layers, as if every zero were skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.structure.attention import eager
from fedprune.structure.layer_kinds import CONVOLUTIONS, TABLES
from fedprune.structure.layout import Layout
from fedprune.tensors.hooks import in_mode, removed_after
from fedprune.tensors.named import Tensors


def positions_of(
    model: nn.Module, layout: Layout, dummy: Tensors, loss: Callable[[nn.Module, Tensors], object]
) -> dict[str, float]:
    """How many input rows the layers of each prunable tensor see for one example.

    Counted in one forward pass in eval mode: tokens for a transformer's layers, output pixels for a
    convolution. A layer used twice and layers that share a tensor are summed up; a tensor that
    belongs to no layer (kind "other") has 0. The model and its mode are left as they were.
    """
    seen = dict.fromkeys(layout.prunable, 0.0)
    with _counting(model, seen), torch.no_grad(), in_mode(model, training=False):
        loss(model, dummy)
    examples = len(next(iter(dummy.values())))
    return {name: rows / examples for name, rows in seen.items()}


@dataclass(frozen=True)
class Passes:
    """Operations for one example, zeros included: of a forward pass, and of the one back from it.

    Of all matrix products and convolutions: attention's, heads and layers that stay dense too.
    """

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Of a forward and a backward pass."""
        return self.forward + self.backward


def passes_of(model: nn.Module, dummy: Tensors, total: Callable[[nn.Module], Tensor]) -> Passes:
    """What torch counts of a forward and a backward pass, attention written out.

    In eval mode, but for modules that keep no activations as they train: these compute again what
    they did. Gradients are let go of one by one. The model is left as it was; `dummy` is one
    example.
    """
    learn = [p for p in model.parameters() if p.requires_grad]
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in learn
    ]
    with in_mode(model, training=False), removed_after(hooks), eager(model), torch.enable_grad():
        for module in model.modules():
            module.training = bool(getattr(module, "gradient_checkpointing", False))
        with FlopCounterMode(display=False) as counter:
            loss = total(model)
            forward = counter.get_total_flops()
            if loss.requires_grad:
                loss.backward()
    examples = len(next(iter(dummy.values())))
    return Passes(forward / examples, (counter.get_total_flops() - forward) / examples)


@contextmanager
def _counting(model: nn.Module, seen: dict[str, float]) -> Iterator[None]:
    """Add up in `seen` what goes through the layers of its tensors."""
    names = {id(p): name for name, p in model.named_parameters() if name in seen}
    hooks = []
    for module in model.modules():
        name = names.get(id(getattr(module, "weight", None)))
        # A table of embeddings may share its tensor with a layer; looking up costs no FLOPs.
        if name is not None and not isinstance(module, TABLES):
            hooks.append(module.register_forward_hook(_counter(seen, name)))
    with removed_after(hooks):
        yield


def _counter(seen: dict[str, float], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        # Every row of the input makes one row of the output.
        spatial = isinstance(layer, CONVOLUTIONS)
        channels = output.shape[-len(layer.kernel_size) - 1 if spatial else -1]  # type: ignore[arg-type]
        seen[name] += output.numel() / channels

    return count


def flops(masks: Mapping[str, Tensor], positions: Mapping[str, float]) -> float:
    """2 * kept weights * positions, summed: a multiplication and an addition for each weight.

    Only of the prunable layers, of one example's forward pass; biases, norms and the products of
    activations with each other (attention) are not in it.
    """
    return sum(
        2.0 * int(np.count_nonzero(mask.cpu().numpy())) * positions[name]
        for name, mask in masks.items()
    )
