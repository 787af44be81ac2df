"""The library in a notebook: a model of one's own, sections by themselves, no configuration."""

import re

import pytest
import torch
from torch import nn

from fedprune.learning.local_training import tune
from fedprune.learning.options import Tuning
from fedprune.learning.steps import step_batches
from fedprune.randomness import generator
from fedprune.scores.catalog import SCORES
from fedprune.scores.score import Evidence, Probe
from fedprune.selection.options import Pruning
from fedprune.selection.select import select
from fedprune.structure.layout import layout_of
from fedprune.tasks.task import Loss, Task


def loss(model: nn.Module, part: dict[str, torch.Tensor]) -> Loss:
    off = (model(part["inputs"]) - part["values"]).square().sum()
    return Loss(off, len(part["inputs"]), 0)


TASK = Task("a line", "error", "", lambda _: nn.Linear(1, 1), loss, lambda _: [])
SECTION = {"lr": 0.02, "batch_size": 8, "local_steps": 30}


def given() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    inputs = torch.randn(40, 6)
    values = inputs @ torch.randn(6, 2)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2)), {
        "inputs": inputs,
        "values": values,
    }


def test_score_select_and_tune_a_bare_model():
    model, part = given()
    layout = layout_of(model, output=("2",))
    names = layout.prunable
    alive = {name: torch.ones_like(p, dtype=torch.bool) for name, p in tensors_of(model, names)}
    score = SCORES["taylor_signed"]
    parts = list(step_batches(part, Tuning(optimizer="sgd", **SECTION), generator(0, "steps")))
    probe = Probe(model, layout, names, [batch for step in parts for batch in step], loss, alive)
    sums = score.asks[0].collect(probe)
    weights = {name: p.detach().clone() for name, p in tensors_of(model, names)}
    scores = score.finalise(Evidence(sums, 240, weights, alive, layout, generator(0, "steps")))
    for batch in probe.batches:
        loss(model, batch).total.backward()
    for name, p in tensors_of(model, names):
        torch.testing.assert_close(sums[name].float(), p * p.grad, rtol=1e-4, atol=1e-5)
    model.zero_grad()

    pruning = Pruning(sparsity=0.5, unit="row", warmup=0, end=1, schedule="one-shot")
    assert (pruning.pool, pruning.unit_shape) == ("mean", None)
    masks = select(
        scores, pruning.sparsity, unit=pruning.unit, pool=pruning.pool, scope=pruning.scope,
        layout=layout,
    )  # fmt: skip
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert 0 < gone <= round(0.5 * sum(mask.numel() for mask in masks.values()))
    with torch.no_grad():
        for name, p in tensors_of(model, names):
            p *= masks[name]
    before = float(loss(model, part).total.detach())
    tuning = Tuning(optimizer="sgd", weight_decay=0.01, **SECTION)
    assert tuning.momentum == 0.9
    assert Tuning(optimizer="adam", **SECTION).momentum is None
    assert Tuning(optimizer="sgd", l1=0.1, **SECTION).shrinkage == "proximal"
    tune(model, masks, step_batches(part, tuning, generator(1, "steps")), TASK, tuning.lr, tuning)
    assert float(loss(model, part).total.detach()) < before
    assert all(not p[~masks[name]].any() for name, p in tensors_of(model, names))


def tensors_of(model: nn.Module, names: tuple[str, ...]) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if name in names]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"optimizer": "adam", "momentum": 0.5}, "momentum=0.5: optimizer is adam; allowed: leave"),
        (
            {"optimizer": "sgd", "shrinkage": "proximal"},
            "shrinkage='proximal': l1 is 0 and gr",
        ),
        (
            {"optimizer": "sdg"},
            "optimizer='sdg': no such optimizer (did you mean sgd?); all",
        ),
        ({"optimizer": "sgd", "lr": "fast"}, "lr\n  Input should be a valid number"),
        ({"optimizer": "sgd", "speed": 1}, "speed\n  Extra inputs are not permitted"),
    ],
)
def test_a_section_by_itself_refuses_as_a_configuration_does(keys, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        Tuning(**{**SECTION, **keys})


def test_what_only_a_task_sets_is_asked_for():
    with pytest.raises(ValueError, match="by task"):
        Tuning(optimizer="sgd")
