"""The adapters of a run as `peft` reads them, and the pruned model that they belong to."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedprune.adapters.factors import DOWN, UP, paths_in
from fedprune.export.folders import load
from fedprune.runtime.files import os_errors
from fedprune.structure.experts import mixtures_in
from fedprune.structure.matrices import as_matrix, kind_of

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_NAME = "adapter"
"""Folder in a run's folder."""

_PREFIX = "base_model.model."
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(
    folder: Path,
    model: nn.Module,
    adapters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    scale: float,
) -> bool:
    """Write adapters for ``peft.PeftModel.from_pretrained(base, folder)``.

    Rows and columns that the masks have emptied are 0 in the factors. So where masks are of whole
    heads, neurons, rows or columns, peft's model says what the run's says; any other mask is lost
    in the sum of base and product, until both are merged and `fedprune.keep_zeros` clears it.
    `scale` is the factor of BA.

    Returns:
        Whether it was: not for models that are none of transformers, nor for mixtures of experts,
        whose layers peft does not know one by one, nor where no layer with factors is left.
    """
    paths = paths_in(adapters)
    if not paths or not hasattr(model, "save_pretrained") or mixtures_in(model):
        return False
    config, layers = _peft_config(model, adapters, scale), dict(model.named_modules())
    tensors = {f"{_PREFIX}{n}": adapters[n] for n in _whole(adapters)}
    for path in paths:
        rows, columns = _alive(layers[path], masks.get(f"{path}.weight"))
        down, up = adapters[f"{path}{DOWN}"], adapters[f"{path}{UP}"]
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = down * columns
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = up * rows[:, None]
    with os_errors(folder):
        folder.mkdir(exist_ok=True)
        config.save_pretrained(str(folder))
        save_file({n: t.contiguous() for n, t in tensors.items()}, str(folder / _WEIGHTS))
    return True


def _whole(adapters: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are trained as they are, without factors."""
    return [n for n in adapters if not n.endswith((DOWN, UP))]


def _peft_config(model: nn.Module, adapters: Mapping[str, Tensor], scale: float) -> LoraConfig:
    """What peft reads of adapters."""
    from peft import LoraConfig

    paths = paths_in(adapters)
    ranks = {p: len(adapters[f"{p}{DOWN}"]) for p in paths}
    rank, layers = ranks[paths[0]], dict(model.named_modules())
    return LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # peft divides it, whole or not
        target_modules=list(paths),
        rank_pattern={p: r for p, r in ranks.items() if r != rank},
        alpha_pattern={p: scale * r for p, r in ranks.items() if r != rank},
        fan_in_fan_out=any(kind_of(layers[p]) != "linear" for p in paths),
        modules_to_save=sorted({n.rpartition(".")[0] for n in _whole(adapters)}) or None,
        base_model_name_or_path=getattr(model, "name_or_path", "") or None,
        inference_mode=True,
    )


def _alive(layer: nn.Module, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which rows and columns of a layer's matrix (out, in) have a weight that is kept."""
    weight: Any = layer.weight
    kept = torch.ones(weight.shape, dtype=torch.bool) if mask is None else mask.cpu()
    matrix = as_matrix(kind_of(layer), kept)
    return matrix.any(1), matrix.any(0)


@torch.no_grad()
def pruned_base(folder: str | Path) -> nn.Module:
    """The pruned model that a run's adapters belong to: the run's own without their product.

    Weights are those that were frozen, up to rounding; removed ones are 0.0. Heads of output that
    were trained whole are as trained.

    Raises:
        FileNotFoundError: it has no adapters.
        ValueError: as `fedprune.load`.
    """
    there = Path(folder) / ADAPTER_NAME
    if not (there / _CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no {ADAPTER_NAME}/; allowed: a run with --adapters")
    about, tensors = json.loads((there / _CONFIG).read_text()), load_file(there / _WEIGHTS)
    model = copy.deepcopy(load(folder)).eval()
    scale, ends = about["lora_alpha"] / about["r"], ".lora_A.weight"
    for name in (n for n in tensors if n.endswith(ends)):
        path = name.removesuffix(ends)
        layer: Any = model.get_submodule(path.removeprefix(_PREFIX))
        moved = scale * tensors[f"{path}.lora_B.weight"] @ tensors[name]
        rows = as_matrix(kind_of(layer), layer.weight)
        rows -= moved.masked_fill(rows == 0, 0.0)
    return model
