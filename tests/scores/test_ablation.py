import copy
from dataclasses import replace

import pytest
import torch
from specimens import BLOCKS, Specimen, built, furthest, probe_of, settled, taken
from torch import nn

from fedprune.scores import ablation
from fedprune.scores.catalog import SCORES
from fedprune.selection.units import unit_labels
from fedprune.tasks.task import Loss, Part
from fedprune.tensors.named import Tensors

ABLATION = SCORES["ablation"]
STRUCTURED = ["row", "column", "head", "neuron", "sublayer", "layer"]


def removed_by_hand(s: Specimen, part: Part, labels: Tensors) -> dict[int, float]:
    """|change of the mean loss| for every unit: zero it in a copy, run everything."""
    model, count = copy.deepcopy(s.model), s.labels * len(part["labels"])
    whole, changes = s.loss(model, part).total.item(), {}
    with torch.no_grad():
        for unit in range(1 + max(int(label.max()) for label in labels.values())):
            for name, label in labels.items():
                model.get_parameter(name).masked_fill_(label == unit, 0.0)
            changes[unit] = abs(s.loss(model, part).total.item() - whole) / count
            model.load_state_dict(s.model.state_dict())
    return changes


def compare(scores: Tensors, labels: Tensors, changes: dict[int, float]) -> None:
    """Rounding of LLaMA's and T5's float32 norms is all that may differ."""
    largest = max(changes.values())
    assert largest > 0
    for name, label in labels.items():
        own = torch.tensor([0.0, *changes.values()]).double()[label.long() + 1]
        assert torch.allclose(scores[name], own, rtol=0, atol=1e-6 * largest)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("unit", STRUCTURED)
@pytest.mark.parametrize("family", ["cnn", *BLOCKS])
def test_removing_units_one_at_a_time_by_hand(family, unit):
    s = built(family)
    if family == "cnn" and unit not in ("row", "column"):
        pytest.skip("it has none")
    if unit in ("row", "column"):
        s = replace(s, layout=replace(s.layout, prunable=s.layout.prunable[:2]))
    labels = unit_labels(s.layout, unit)
    scores = ABLATION.finalise(taken(ABLATION, s, [s.shards[2]], size=4, unit=unit))
    compare(scores, labels, removed_by_hand(s, s.shards[2], labels))


@pytest.mark.parametrize("family", ["cnn", "llama", "gpt2"])
def test_removing_weights_one_at_a_time_by_hand(family):
    s = built(family)
    s = replace(s, layout=replace(s.layout, prunable=s.layout.prunable[:1]))
    name, part = s.layout.prunable[0], s.shards[0]
    scores = ABLATION.finalise(taken(ABLATION, s, [part], size=3))[name]
    model = copy.deepcopy(s.model)
    flat, whole = model.get_parameter(name).detach().view(-1), s.loss(model, part).total.item()
    for place in scores.flatten().topk(20).indices.tolist():
        held = flat[place].item()
        flat[place] = 0.0
        change = abs(s.loss(model, part).total.item() - whole) / (s.labels * len(part["labels"]))
        flat[place] = held
        assert scores.flatten()[place].item() == pytest.approx(change, rel=1e-4)
    assert not scores[~s.masks[name]].any(), "what is gone does nothing"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "unit"), [("cnn", "weight"), ("llama", "head"), ("t5", "neuron")]
)
def test_many_at_once_is_one_at_a_time(family, unit, monkeypatch):
    """One by one go those of a task that does not tell the loss of every example."""
    s = built(family)
    silent = replace(s, loss=lambda model, batch: replace(s.loss(model, batch), each=None))
    slowly = taken(ABLATION, silent, [s.shards[0]], size=3, unit=unit).sums
    for at_once in (1, 300, 10**9):
        monkeypatch.setattr(ablation, "_AT_ONCE", at_once)
        assert furthest(taken(ABLATION, s, [s.shards[0]], size=3, unit=unit).sums, slowly) < 1e-6


def test_a_batch_goes_through_once_for_many_units():
    s, rows = built("llama"), []

    def loss(model: nn.Module, batch: Part) -> Loss:
        rows.append(len(batch["labels"]))
        return s.loss(model, batch)

    ABLATION.asks[0].collect(replace(probe_of(s, [s.shards[0]], unit="neuron"), loss=loss))
    assert rows == [4, 4 * 20], "all 2 * 10 neurons in one pass"


def turned(model: nn.Module, batch: Part) -> Loss:
    """A model whose layers see the batch in their second dimension."""
    out = model(batch["x"].transpose(0, 1)).transpose(0, 1)
    each = out.square().flatten(1).sum(1)
    return Loss(each.sum(), len(each), 0, each)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Linear(3, 2)),
    ],
    ids=["batch not first", "grouped convolution"],
)
def test_where_units_cannot_share_a_pass_they_go_one_by_one(model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        part = {"x": torch.randn(4, 5, 3).double(), "labels": torch.zeros(4)}
        s = settled(model, turned, (part,), 1)
    if isinstance(model[0], nn.Conv1d):
        s = replace(s, loss=lambda m, b: turned(m, {"x": b["x"][:, :4].transpose(0, 1)}))
    labels = unit_labels(s.layout, "column")
    scores = ABLATION.finalise(taken(ABLATION, s, [part], unit="column"))
    compare(scores, labels, removed_by_hand(s, part, labels))
