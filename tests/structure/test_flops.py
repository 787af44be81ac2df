from typing import Any

import pytest
import torch
from families import TEXTS, family, inputs
from modules import module
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.structure.flops import flops, positions_of
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.task import Loss
from fedprune.tensors.models import state_of
from fedprune.tensors.named import digest, full_masks


def said(model: nn.Module, batch: dict[str, Tensor]) -> Loss:
    model(**batch)
    return Loss(torch.zeros(()), 1, 0)


def counted(model: nn.Module, layout: Layout, batch: dict[str, Tensor]) -> float:
    """What torch counts within the layers of the prunable tensors."""
    names = {id(p): n for n, p in model.named_parameters()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    by_module = counter.get_flop_counts()
    layers = [
        path
        for path, m in model.named_modules()
        if names.get(id(getattr(m, "weight", None))) in layout.prunable
        and not isinstance(m, nn.Embedding)
    ]
    root = type(model).__name__
    return float(sum(sum(by_module[f"{root}.{path}"].values()) for path in layers))


@pytest.mark.parametrize("name", TEXTS)
def test_transformers_as_torch_counts_them(name):
    f = family(name)
    batch = inputs(name, f.model)
    positions = positions_of(f.model, f.layout, batch, said)
    masks = full_masks(state_of(f.model), f.layout.prunable)
    assert 2 * flops(masks, positions) == counted(f.model, f.layout, batch)


def twice(self: Any, x: Tensor) -> Tensor:
    x = self.drop(self.norm(self.conv(x))).flatten(2)
    return self.again(self.again(x))


def test_convolutions_groups_reuse_and_a_model_left_alone():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    layers = {"conv": conv, "again": nn.Conv1d(6, 6, 3, padding=1), "norm": nn.BatchNorm2d(6)}
    model = module(twice, **layers, drop=nn.Dropout(0.5))
    model.norm.eval()
    layout = layout_of(model)
    before, modes = digest(state_of(model)), [m.training for m in model.modules()]
    batch = {"x": torch.ones(3, 4, 8, 8)}
    positions = positions_of(model, layout, batch, said)
    assert positions == {"conv.weight": 16.0, "again.weight": 32.0}
    assert digest(state_of(model)) == before
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())
    masks = full_masks(state_of(model), layout.prunable)
    model.eval()
    assert flops(masks, positions) * 3 == counted(model, layout, batch)
