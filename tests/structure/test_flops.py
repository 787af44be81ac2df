import pytest
import torch
from families import TEXTS, Family, family
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.structure.flops import flops, positions_of
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.task import Loss, Part
from fedprune.tensors.models import state_of
from fedprune.tensors.named import digest, full_masks

TOKENS = 9


def said(model: nn.Module, batch: Part) -> Loss:
    ids = batch["inputs"]
    more = {"decoder_input_ids": ids[:, :4]} if hasattr(model, "decoder") else {}
    model(input_ids=ids, **more)
    return Loss(torch.zeros(()), 1, 0)


def seen(model: nn.Module, batch: Part) -> Loss:
    model(batch["images"])
    return Loss(torch.zeros(()), 1, 0)


def counted(model: nn.Module, layout: Layout, batch: Part, loss: object) -> float:
    """What torch counts within the layers of the prunable tensors."""
    names = {id(p): n for n, p in model.named_parameters()}
    assert callable(loss)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loss(model, batch)
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
    f: Family = family(name)
    dummy = {"inputs": torch.ones(1, TOKENS, dtype=torch.long)}
    positions = positions_of(f.model, f.layout, dummy, said)
    masks = full_masks(state_of(f.model), f.layout.prunable)
    assert flops(masks, positions) == counted(f.model, f.layout, dummy, said)
    one = f.layout.prunable[0]
    assert positions[one] == TOKENS
    half = {**masks, one: masks[one].clone()}
    half[one].view(-1)[::2] = False
    lost = masks[one].numel() - int(half[one].sum())
    assert flops(masks, positions) - flops(half, positions) == 2 * lost * TOKENS


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.again = nn.Conv1d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(self.conv(x))).flatten(2)
        return self.again(self.again(x))


def test_convolutions_groups_reuse_and_a_model_left_alone():
    model = Twice()
    model.norm.eval()
    layout = layout_of(model)
    before, modes = digest(state_of(model)), [m.training for m in model.modules()]
    dummy = {"images": torch.ones(3, 4, 8, 8)}
    positions = positions_of(model, layout, dummy, seen)
    assert positions == {"conv.weight": 16.0, "again.weight": 32.0}
    assert digest(state_of(model)) == before
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())
    masks = full_masks(state_of(model), layout.prunable)
    model.eval()
    assert flops(masks, positions) * 3 == counted(model, layout, dummy, seen)
