"""Gradients of single examples are those of autograd, and their bounded sum moves by a norm."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedprune import RunConfig
from fedprune.client.host import Host
from fedprune.privacy.clipping import clipped, scaled
from fedprune.protocol.messages import Question
from fedprune.protocol.models import dense_model
from fedprune.scores.example_gradients import ExampleGradients, bounded_sum
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.task import Loss, Part, batches, classification_loss

Tiny = Callable[..., RunConfig]


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
def test_images_are_taken_at_once(model: str, tiny: Tiny):
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
def test_text_is_taken_at_once_or_one_by_one(task: str, model: str, at_once: bool, tiny: Tiny):
    config = tiny(task=task, model=model, length=8, width=16)
    net = dense_model(config).eval()
    dummy = TASKS[task].dummy
    assert dummy is not None
    one, gen = dummy(config), torch.Generator().manual_seed(1)
    ids = {n: t.repeat(3, 1) for n, t in one.items()}
    for name in ("inputs", "labels"):
        ids[name] = torch.randint(2, 40, ids[name].shape, generator=gen)
    taken = ExampleGradients(net, TASKS[task].loss, trainable(net))
    assert worst(taken, ids) < 1e-4
    assert taken.at_once == {3: at_once}


def test_the_model_stays_as_it_is(cnn: tuple[Host, Question], same: Callable[..., bool]):
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


def test_a_loss_that_calls_its_model_twice_goes_one_by_one(tiny: Tiny):
    def twice(model: nn.Module, batch: Part) -> Loss:
        first = classification_loss(model, batch)
        flipped = {**batch, "images": batch["images"].flip(-1)}
        second = classification_loss(model, flipped)
        return Loss(first.total + second.total, first.count, first.correct)

    net = dense_model(tiny(model="mlp")).eval()
    taken = ExampleGradients(net, twice, trainable(net))
    assert worst(taken, images(3)) < 1e-5
    assert taken.at_once == {3: False}


def test_examples_that_do_not_fit_in_memory_come_in_pieces(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
):
    net = dense_model(tiny(model="mlp")).eval()
    size = sum(p.numel() for p in net.parameters())
    monkeypatch.setattr("fedprune.scores.example_gradients.AT_ONCE", 2 * size)
    taken = ExampleGradients(net, classification_loss, trainable(net))
    assert [len(some.rows["labels"]) for some in taken.of(images(5))] == [2, 2, 1]
    assert worst(taken, images(5)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("exactly", [True, False])
def test_a_bounded_sum_is_the_sum_of_bounded_rows(exactly: bool, dtype: torch.dtype):
    gen = torch.Generator().manual_seed(2)
    rows = (torch.randn(50, 7, generator=gen) * torch.logspace(-3, 3, 50)[:, None]).to(dtype)
    rows[3] = 0.0
    bound = scaled if exactly else clipped
    right = sum(bound(row, 0.7).double() for row in rows)
    assert isinstance(right, Tensor)
    assert torch.allclose(bounded_sum(rows, 0.7, exactly=exactly), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exactly", [True, False])
def test_no_row_moves_a_bounded_sum_by_more_than_its_norm(exactly: bool, dtype: torch.dtype):
    gen = torch.Generator().manual_seed(3)
    odd = [math.nan, math.inf, -math.inf, 1e308, -1e300, 1e38, 5e-324, 1e-45, 0.0]
    rows = torch.randn(60, 5, generator=gen, dtype=torch.float64) * 10.0
    for i, value in enumerate(odd * 4):
        rows[i, i % 5] = value
    for i, scale in enumerate([1e-160, 1e-200, 1e-42, 1e-38, 1e38, 1e200]):
        rows[40 + i] *= scale
    rows = rows.to(dtype)
    whole = bounded_sum(rows, 0.3, exactly=exactly)
    assert torch.isfinite(whole).all()
    for i in range(60):
        without = bounded_sum(torch.cat([rows[:i], rows[i + 1 :]]), 0.3, exactly=exactly)
        assert float((whole - without).norm()) <= 0.3 * (1 + 1e-6)


def test_a_bounded_sum_of_nothing_is_zero():
    assert torch.equal(bounded_sum(torch.empty(0, 4), 1.0), torch.zeros(4, dtype=torch.float64))
