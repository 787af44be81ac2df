"""Gradients of single examples are those of autograd, and so are statistics of them."""

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
    rows = list(batches(part, 1))
    errors, seen, loss, labels = [0.0], 0, 0.0, 0
    for some in taken.of(part):
        many = next(iter(some.gradients.values())).shape[0]
        for i, row in enumerate(rows[seen : seen + many]):
            model = dict(taken.model.named_parameters())
            total = taken.loss(taken.model, row).total
            found = torch.autograd.grad(total, [model[n] for n in taken.names], allow_unused=True)
            for name, right in zip(taken.names, found, strict=True):
                g = some.gradients[name][i]
                if right is None:
                    assert not g.any()
                elif right.any():
                    errors.append(float((g - right).abs().max() / right.abs().max()))
        seen, loss, labels = seen + many, loss + some.loss, labels + some.labels
    whole = taken.loss(taken.model, part)
    assert seen == len(rows)
    assert loss == pytest.approx(whole.total.item(), rel=1e-5)
    assert labels == whole.count
    return max(errors)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_images_are_taken_at_once(model):
    net = dense_model(tiny(model=model)).eval()
    taken = ExampleGradients(net, classification_loss, trainable(net))
    assert worst(taken, images(9)) < 1e-5
    assert taken.at_once == {9: True}


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
    config = tiny(task=task, model=model, length=8, width=16)
    net = dense_model(config).eval()
    dummy = TASKS[task].dummy
    one, gen = dummy(config), torch.Generator().manual_seed(1)
    ids = {n: t.repeat(3, 1) for n, t in one.items()}
    for name in ("inputs", "labels"):
        ids[name] = torch.randint(2, 40, ids[name].shape, generator=gen)
    taken = ExampleGradients(net, TASKS[task].loss, trainable(net))
    assert worst(taken, ids) < 1e-4
    assert taken.at_once == {3: at_once}


def test_the_model_stays_as_it_is(cnn):
    model = cnn[0].model.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for _ in ExampleGradients(model, classification_loss, trainable(model)).of(images(4)):
        pass
    assert same(dict(model.state_dict()), before)
    assert all(p.grad is None for p in model.parameters())
    assert not model._forward_hooks


def test_a_model_whose_rows_depend_on_each_other_goes_one_by_one():
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            out: Tensor = self.layer(x - x.mean(0))
            return out

    torch.manual_seed(0)
    net = Mixing()
    taken = ExampleGradients(net, classification_loss, trainable(net))
    found = list(taken.of(images(5)))
    assert taken.at_once == {5: False}
    assert len(found) == 5


def test_a_loss_that_calls_its_model_twice_goes_one_by_one():
    def twice(model: nn.Module, batch: Part) -> Loss:
        first = classification_loss(model, batch)
        flipped = {**batch, "images": batch["images"].flip(-1)}
        second = classification_loss(model, flipped)
        return Loss(first.total + second.total, first.count, first.correct)

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

    probe = probe_of(s, list(batches(part, rows)))
    sums = by_example(square)(type(probe)(**{**vars(probe), "loss": counted}))
    expected = one_by_one(s, part)
    assert set(expected) > {"twice.weight", "tied.weight", "by_hand.weight", "both.weight"}
    assert furthest(sums, expected) < 1e-9
    assert max(calls) == rows
