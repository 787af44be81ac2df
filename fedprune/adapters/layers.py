"""The model that is trained: `peft`'s LoRA layers in a copy that shares the weights of a model."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedprune.adapters.coded import codes_of
from fedprune.adapters.factors import DOWN, paths_in
from fedprune.scores.score import Shapes
from fedprune.structure.matrices import kind_of
from fedprune.tensors.codes import Codes, restored
from fedprune.tensors.models import CONSTANTS, hollow
from fedprune.tensors.named import all_true


class MaskedLoraLinear(Linear):
    """`peft`'s linear layer with W∘M + s·(BA)∘M for W + s·BA.

    Attributes:
        mask: of the weight, in its shape, True = kept; None: all of it is, and the product is not
            computed but applied factor by factor.
        codes: what its weight is restored from, in the forward and again in the backward pass;
            None: it is in memory.
        bits: of a code.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **what: Any) -> None:
        super().__init__(base_layer, adapter_name, **what)
        self.fan_in_fan_out = kind_of(base_layer) != "linear"
        self.mask: Tensor | None = None
        self.codes: Codes | None = None
        self.bits = 8

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output; see the class."""
        if self.codes is not None:
            apart = self.mask is None and self.training
            # For the backward pass it is computed again, and nothing kept till then.
            call = self._plain if apart else self._whole
            found: Tensor = checkpoint(call, x, use_reentrant=False, preserve_rng_state=False)
            return found + self._beside(x) if apart else found
        return super().forward(x, *args, **kwargs) if self.mask is None else self._whole(x)

    def _whole(self, x: Tensor) -> Tensor:
        """The output by the weight that merging makes, which is made for it."""
        moved = self.get_delta_weight(self.active_adapters[0])
        return self._by(x, moved if self.mask is None else torch.where(self.mask, moved, 0.0))

    def _plain(self, x: Tensor) -> Tensor:
        """The output by the frozen weight alone."""
        return self._by(x, None)

    def _by(self, x: Tensor, moved: Tensor | None) -> Tensor:
        base: Any = self.base_layer
        frozen = base.weight if self.codes is None else self.frozen()
        weight = frozen if moved is None else frozen + moved
        return nn.functional.linear(x, weight.t() if self.fan_in_fan_out else weight, base.bias)

    def _beside(self, x: Tensor) -> Tensor:
        """What the factors add, one after the other, as `peft` computes it."""
        (name,) = self.active_adapters
        out: Tensor = self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
        return out

    def frozen(self) -> Tensor:
        """The weight that codes stand for, in its shape."""
        assert self.codes is not None
        columns = int(self.in_features or 0)
        rows = restored(self.codes, self.bits, columns)
        return rows.t() if self.fan_in_fan_out else rows


def lora_copy(model: nn.Module, shapes: Shapes, scale: float) -> nn.Module:
    """A copy of the model with factors in its layers; its frozen weights are the model's memory.

    What is loaded into the model is there too. Its state is the adapters alone. The model itself is
    left as it is. `scale` is the factor of BA.
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


def put_codes(model: nn.Module, weights: Mapping[str, Tensor], bits: int) -> None:
    """Let the layers with factors compute with the codes of these weights, and hold no others.

    Their weights keep shapes and no memory until something is loaded into them.

    Args:
        model: of `lora_copy`.
        weights: of `fedprune.adapters.coded.in_codes`, by name; read, not kept.
        bits: of a code.

    Raises:
        ValueError: see `fedprune.adapters.coded.codes_of`.
    """
    for path, layer in lora_layers(model).items():
        base: Any = layer.base_layer
        weight, layer.bits = weights[f"{path}.weight"].to(base.weight.device), bits
        if layer.codes is None or not torch.equal(layer.frozen(), weight):
            layer.codes = codes_of(weight.t() if layer.fan_in_fan_out else weight, bits)
        base.weight.data = hollow(weight)
