"""The model that is trained: `peft`'s LoRA layers in a copy that shares the weights of a model."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from fedprune.adapters.factors import DOWN, paths_in
from fedprune.scores.score import Shapes
from fedprune.structure.matrices import kind_of
from fedprune.tensors.models import CONSTANTS
from fedprune.tensors.named import all_true


class MaskedLoraLinear(Linear):
    """`peft`'s linear layer with W∘M + s·(BA)∘M for W + s·BA.

    Attributes:
        mask: of the weight, in its shape, True = kept; None: all of it is, and the product is not
            computed but applied factor by factor.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **what: Any) -> None:
        super().__init__(base_layer, adapter_name, **what)
        self.fan_in_fan_out = kind_of(base_layer) != "linear"
        self.mask: Tensor | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output; see the class."""
        if self.mask is None:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        moved = self.get_delta_weight(self.active_adapters[0]).masked_fill(~self.mask, 0.0)
        weight = base.weight + moved
        return nn.functional.linear(x, weight.t() if self.fan_in_fan_out else weight, base.bias)


def lora_copy(model: nn.Module, shapes: Shapes, scale: float) -> nn.Module:
    """A copy of the model with factors in its layers; its frozen weights are the model's memory.

    What is loaded into the model is there too. Its state is the adapters alone.

    Args:
        model: left as it is.
        shapes: of the adapters.
        scale: factor of the product BA.
    """
    found = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}
    memo: dict[int, Any] = {**found, **{id(b): b for b in model.buffers()}}
    own: nn.Module = copy.deepcopy(model, memo)
    modules = dict(own.named_modules())
    paths = paths_in(shapes)
    rank = shapes[f"{paths[0]}{DOWN}"][0]
    # Around a model whose config names a mixture of experts, peft would look for its stacks.
    around = nn.ModuleDict({"own": own})
    named = "|".join(re.escape(f"own.{path}") for path in paths)
    how = LoraConfig(r=rank, lora_alpha=rank, target_modules=named)
    how._register_custom_module({type(modules[p]): MaskedLoraLinear for p in paths})
    with warnings.catch_warnings():  # of ties that merging would break: none are among the layers
        warnings.simplefilter("ignore")
        inject_adapter_in_model(how, around)
    for layer in lora_layers(own).values():
        layer.scaling["default"] = scale
    for name, p in own.named_parameters():
        p.requires_grad_(name in shapes)
    setattr(own, CONSTANTS, frozenset(name for name, _ in own.named_buffers()))
    return own


def lora_layers(model: nn.Module) -> dict[str, MaskedLoraLinear]:
    """The layers with factors, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, MaskedLoraLinear)}


def put_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Let the layers with factors compute under these masks, by the names of the weights."""
    for path, layer in lora_layers(model).items():
        mask = masks.get(f"{path}.weight")
        whole = mask is None or all_true(mask)
        layer.mask = None if whole or mask is None else mask.to(layer.weight.device)
