"""Gradients of single examples are those of autograd, and so are statistics of them."""

from dataclasses import replace

import pytest
import torch
from specimens import FAMILIES, Specimen, built, furthest, probe_of, settled
from torch import Tensor, nn

from fedprune.protocol.models import dense_model
from fedprune.scores.example_gradients import ExampleGradients, by_example
from fedprune.scores.gradients import square
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.losses import classification_loss
from fedprune.tasks.task import Loss, Part, batches
from fedprune.tensors.named import Tensors
from tests.runs import same, tiny


def images(n: int) -> Part:
    gen = torch.Generator().manual_seed(n)
    labels = torch.randint(0, 10, (n,), generator=gen)
    return {"images": torch.randn(n, 1, 8, 8, generator=gen), "labels": labels}


def trainable(model: nn.Module) -> tuple[str, ...]:
    return tuple(n for n, p in model.named_parameters() if p.requires_grad)


def worst(taken: ExampleGradients, part: Part) -> float:
    """The largest error of any tensor's gradient of any example, relative to its largest."""
    errors, parameters = [0.0], [taken.model.get_parameter(n) for n in taken.names]
    pieces, whole = list(taken.of(part)), taken.loss(taken.model, part)
    assert sum(some.loss for some in pieces) == pytest.approx(whole.total.item(), rel=1e-5)
    assert sum(some.labels for some in pieces) == whole.count
    each = {n: torch.cat([some.gradients[n] for some in pieces]) for n in taken.names}
    for i, row in enumerate(batches(part, 1)):
        total = taken.loss(taken.model, row).total
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        for name, right in zip(taken.names, found, strict=True):
            g = each[name][i]
            if right is None:
                assert not g.any()
            elif right.any():
                errors.append(float((g - right).abs().max() / right.abs().max()))
    assert {len(g) for g in each.values()} == {i + 1}
    return max(errors)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_images_are_taken_at_once_and_the_model_stays_as_it_is(model):
    net = dense_model(tiny(model=model)).eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    taken = ExampleGradients(net, classification_loss, trainable(net))
    assert worst(taken, images(9)) < 1e-5
    assert taken.at_once == {9: True}
    assert same(dict(net.state_dict()), before)
    assert all(p.grad is None for p in net.parameters())
    assert not net._forward_hooks


@pytest.mark.parametrize(
    ("task", "model", "at_once"),
    [
        ("shakespeare", "llama-gqa", True),
        ("shakespeare", "llama-tied", True),
        ("shakespeare", "gpt2", True),
        ("shakespeare-masked", "bert", False),
        ("shakespeare-restore", "t5", False),
    ],
)
def test_text_is_taken_at_once_or_one_by_one(task, model, at_once):
    config, gen = tiny(task=task, model=model, length=8, width=16), torch.Generator()
    net = dense_model(config).eval()
    ids = {n: t.repeat(3, 1) for n, t in TASKS[task].dummy(config).items()}
    for name in ("inputs", "labels"):
        ids[name] = torch.randint(2, 40, ids[name].shape, generator=gen)
    taken = ExampleGradients(net, TASKS[task].loss, trainable(net))
    assert worst(taken, ids) < 1e-4
    assert taken.at_once == {3: at_once}


class Mixing(nn.Module):
    """What it says of a row depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        out: Tensor = self.layer(x - x.mean(0))
        return out


def twice(model: nn.Module, batch: Part) -> Loss:
    """A loss that calls its model twice."""
    first = classification_loss(model, batch)
    second = classification_loss(model, {**batch, "images": batch["images"].flip(-1)})
    return Loss(first.total + second.total, first.count, first.correct)


def test_rows_that_depend_on_each_other_and_models_called_twice_go_one_by_one():
    taken = ExampleGradients(Mixing(), classification_loss, ("layer.weight", "layer.bias"))
    assert len(list(taken.of(images(5)))) == 5
    assert taken.at_once == {5: False}
    net = dense_model(tiny(model="mlp")).eval()
    taken = ExampleGradients(net, twice, trainable(net))
    assert worst(taken, images(3)) < 1e-5
    assert taken.at_once == {3: False}


def test_examples_that_do_not_fit_in_memory_come_in_pieces(monkeypatch):
    net = dense_model(tiny(model="mlp")).eval()
    size = sum(p.numel() for p in net.parameters())
    monkeypatch.setattr("fedprune.scores.example_gradients._AT_ONCE", 2 * size)
    taken = ExampleGradients(net, classification_loss, trainable(net))
    assert [len(some.rows["labels"]) for some in taken.of(images(5))] == [2, 2, 1]
    assert worst(taken, images(5)) < 1e-5


def one_by_one(s: Specimen, part: Part) -> Tensors:
    """The oracle: Σ g² of single examples by autograd."""
    parameters = [s.model.get_parameter(n) for n in s.layout.prunable]
    sums = [torch.zeros_like(p) for p in parameters]
    for row in batches(part, 1):
        found = torch.autograd.grad(s.loss(s.model, row).total, parameters, allow_unused=True)
        sums = [a + (0.0 if g is None else g.square()) for a, g in zip(sums, found, strict=True)]
    return {n: t.detach() for n, t in zip(s.layout.prunable, sums, strict=True)}


@pytest.mark.parametrize("at_once", [1, 10**9], ids=["in parts", "at once"])
@pytest.mark.parametrize("family", FAMILIES)
def test_squares_are_those_of_single_examples(family, at_once, monkeypatch):
    monkeypatch.setattr("fedprune.scores.example_gradients._AT_ONCE", at_once)
    s = built(family)
    part = s.shards[1]
    sums = by_example(square)(probe_of(s, batches(part, 4)))
    assert furthest(sums, one_by_one(s, part)) < 1e-9


class Odd(nn.Module):
    """Layers twice, tied, grouped, flattened, turned, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.first = nn.Linear(6, 6)
        self.first.weight = self.tied.weight
        self.grouped = nn.Conv1d(4, 6, 3, groups=2, padding=1)
        self.flat = nn.Linear(6, 5)
        self.turned = nn.Linear(5, 4)
        self.by_hand = nn.Linear(4, 4)
        self.both = nn.Linear(4, 4)
        self.inplace = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.tied(torch.tanh(self.twice(torch.tanh(self.twice(x))))))
        x = self.grouped(x.transpose(1, 2).reshape(len(x), 4, -1)).flatten(1).unflatten(1, (-1, 6))
        x = self.flat(x.reshape(-1, 6)).reshape(len(x), -1, 5)
        x = self.turned(x.transpose(0, 1)).transpose(0, 1)
        x = nn.functional.linear(x, self.by_hand.weight).tanh()
        x = self.both(x) + nn.functional.linear(x, self.both.weight)
        return nn.functional.relu_(self.inplace(x)).sum(1)


def crossed(model: nn.Module, batch: Part) -> Loss:
    logits = model(batch["x"])
    total = nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")
    return Loss(total, len(logits), 0)


@pytest.mark.parametrize("rows", [1, 4, 6, 9])
def test_layers_used_in_odd_ways_count_every_use(rows):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        part = {"x": torch.randn(13, 4, 6).double(), "labels": torch.randint(0, 3, (13,))}
        s = settled(Odd(), crossed, (part,), 1)
    calls = []

    def counted(model: nn.Module, batch: Part) -> Loss:
        calls.append(len(batch["x"]))
        return crossed(model, batch)

    sums = by_example(square)(replace(probe_of(s, list(batches(part, rows))), loss=counted))
    expected = one_by_one(s, part)
    assert set(expected) > {"twice.weight", "tied.weight", "by_hand.weight", "both.weight"}
    assert furthest(sums, expected) < 1e-9
    assert max(calls) == rows
