"""A cut transformer as one that a plain config describes, where there is such a config.

transformers builds a model from its config alone: every block alike. So heads and neurons must be
equally many in every block, heads must be something that the family's config counts apart from
its width (LLaMA and T5 do, BERT, RoBERTa and GPT-2 do not), and of a block that is gone nothing
may stay, no bias and no norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.export.config_keys import UNSAID, Unplain, bias_keys, config_changes
from fedprune.structure.edits import Edits
from fedprune.structure.experts import stacked_experts
from fedprune.structure.families.catalog import FAMILIES
from fedprune.structure.families.family import Family
from fedprune.structure.slicing import sliced_keys


def plain_model(model: nn.Module, dense: nn.Module, edits: Edits) -> nn.Module:
    """A model of the same class built from a plain config, with the same values.

    `dense` is the model before the edits.

    Raises:
        Unplain: there is no such config.
    """
    settings: Any = getattr(dense, "config", None)
    family = FAMILIES.get(getattr(settings, "model_type", ""))
    if not hasattr(dense, "save_pretrained") or (edits and family is None):
        raise Unplain(f"{type(dense).__name__} is no model whose config fedprune knows")
    biases = bias_keys(family, edits)
    said = {"expert", "head", "neuron", "slice"} | ({"bias"} if biases else set())
    for kind in sorted({edit.kind for edit in edits} - said):
        raise Unplain(f"edits of kind {kind}: {UNSAID[kind]}")
    changes, blocks = ({}, {}) if family is None else config_changes(dense, family, edits)
    for edit in edits:
        if edit.kind == "slice":
            changes |= sliced_keys(settings, edit.kept[0])
    # Some keys are kept under another name (`num_experts` of Qwen3-MoE).
    known = {settings.attribute_map.get(k, k): v for k, v in (changes | biases).items()}
    try:
        config = type(settings).from_dict(settings.to_dict() | known)
    except Exception as error:  # transformers' own checks, of several classes
        reason = " ".join(str(error).split())[-200:]
        raise Unplain(f"transformers refuses the config: {reason}") from None
    made: nn.Module = type(dense)(config).to(next(model.parameters()).dtype)
    values = _values(model, blocks, family)
    if biases:  # which the config gives to more layers than have one
        new = {n: torch.zeros_like(t) for n, t in made.state_dict().items() if n.endswith(".bias")}
        values = {**new, **values}
    _fill(made, values)
    return made.eval()


@torch.no_grad()
def _fill(made: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy every value of the cut model to its place in the plain one."""
    for name, place in made.state_dict().items():
        value = values.pop(name, None)
        if value is None or value.shape != place.shape:
            found = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise Unplain(f"{name} would be of shape {tuple(place.shape)}, the model has {found}")
        place.copy_(value)
    stays = [name for name, value in values.items() if bool(value.any())]
    if stays:
        name = stays[0].removeprefix("gone.")
        raise Unplain(f"{name} stays of a part that is gone, and a config keeps none of it")


def _values(
    model: nn.Module, blocks: Mapping[str, str], family: Family | None
) -> dict[str, Tensor]:
    """The cut model's tensors under the names of the plain one."""
    new = {old: fresh for fresh, old in blocks.items()}
    try:
        tables = {} if family is None else family.kept_tables(model)
    except ValueError as error:
        raise Unplain(str(error)) from None
    values: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        block = next((b for b in new if name.startswith(f"{b}.")), None)
        known = name if block is None else new[block] + name[len(block) :]
        known, value = tables.get(name, (known, value))
        values[known] = value
    try:
        return stacked_experts(values)
    except ValueError as error:
        raise Unplain(str(error)) from None
