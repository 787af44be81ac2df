from typing import Any

import pytest
import torch
from torch import nn

from fedprune import keep_zeros, zeros_callback
from tests.modules import module


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    model[0].weight.data[:, ::2] = 0.0
    return model


def steps(model: nn.Module, kind: type) -> None:
    optimizer = kind(model.parameters(), lr=0.1)
    for _ in range(4):
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("given", [False, True])
def test_zeros_stay_through_any_optimizer_s_steps_and_no_longer(kind, given):
    model = net()
    mask = torch.rand(5, 6) > 0.5
    with keep_zeros(model, {"0.weight": mask} if given else None):
        steps(model, kind)
    gone = ~mask if given else torch.arange(6).expand(5, 6) % 2 == 0
    assert not model[0].weight[gone].any()
    assert bool(model[0].weight[~gone].all())
    steps(model, kind)
    assert bool(model[0].weight[gone].any())


def test_a_mask_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"masks: 1\.weight is no parameter of Sequential"):
        zeros_callback(net(), {"1.weight": torch.ones(2, 2).bool()})


@pytest.mark.slow
def test_a_trainer_of_transformers_keeps_them(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    def forward(self: Any, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.inner(x)
        return {"loss": (out[:, 0] - labels).square().mean(), "logits": out}

    model = module(forward, inner=net())
    rows = [{"x": torch.randn(6), "labels": torch.tensor(1.0)} for _ in range(16)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, report_to=[], use_cpu=True, save_strategy="no", logging_steps=9
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=[zeros_callback(model)]).train()
    assert not model.inner[0].weight[:, ::2].any()
    assert bool(model.inner[0].weight[:, 1::2].all())
