import pytest
import torch
from specimens import FAMILIES, Specimen, built, furthest, probe_of, settled
from torch import Tensor, nn

from fedprune.scores import examples
from fedprune.scores.examples import by_example
from fedprune.scores.gradients import square, taylor_second
from fedprune.tasks.task import Loss, Part, batches
from fedprune.tensors import Tensors


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
def test_squares_are_those_of_single_examples(
    family: str, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(examples, "AT_ONCE", at_once)
    s = built(family)
    part = s.shards[1]
    sums = by_example(square)(probe_of(s, batches(part, 4)))
    assert furthest(sums, one_by_one(s, part)) < 1e-9


class Odd(nn.Module):
    """What hooks may get wrong: layers twice, tied, grouped, flattened, turned, by hand."""

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
def test_where_hooks_do_not_see_the_gradient_examples_go_one_by_one(rows: int):
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


def test_a_well_behaved_model_takes_one_pass_and_one_example_for_every_size_of_batch():
    s, calls = built("cnn"), []

    def counted(model: nn.Module, batch: Part) -> Loss:
        calls.append(len(batch["labels"]))
        return s.loss(model, batch)

    probe = probe_of(s, list(batches(s.shards[1], 4)))
    by_example(taylor_second)(type(probe)(**{**vars(probe), "loss": counted}))
    assert calls == [4, 1, 4, 3, 1]
