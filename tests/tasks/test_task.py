from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedprune.tasks.losses import MOST_CLASSES, class_loss, f1_names, token_loss
from fedprune.tasks.task import Loss, batches

GEN = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("classes", [2, 7, MOST_CLASSES, MOST_CLASSES + 1])
def test_a_class_loss_is_cross_entropy_with_counts(classes):
    logits = torch.randn(50, classes, generator=GEN, requires_grad=True)
    labels = torch.randint(0, classes, (50,), generator=GEN)
    loss = class_loss(logits, labels)
    expected = nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert torch.equal(loss.total, expected), "bit for bit"
    torch.testing.assert_close(
        loss.each, nn.functional.cross_entropy(logits, labels, reduction="none")
    )
    guess = logits.argmax(-1)
    assert (loss.count, loss.correct) == (50, int((guess == labels).sum()))
    assert tuple(loss.extra) == f1_names(classes)
    for c in range(classes) if classes <= MOST_CLASSES else ():
        mine, theirs = guess == c, labels == c
        assert loss.extra[f"tp_{c}"] == (mine & theirs).sum()
        assert loss.extra[f"fp_{c}"] == (mine & ~theirs).sum()
        assert loss.extra[f"fn_{c}"] == (~mine & theirs).sum()


def test_what_training_does_not_read_of_a_loss_is_not_computed():
    made: list[str] = []

    def of(name: str, value: object) -> Callable[[], object]:
        return lambda: made.append(name) or value

    loss = Loss(torch.tensor(1.0), of("count", 3), of("correct", 2), extra=of("extra", {"a": 1.0}))
    assert (loss.count, made) == (3, ["count"])
    assert (loss.correct, loss.correct, loss.extra, loss.each) == (2, 2, {"a": 1.0}, None)
    assert made == ["count", "correct", "extra"], "each of them once"
    assert replace(loss, count=5).count == 5
    assert Loss(loss.total, 1, 0).extra == {}
    with pytest.raises(TypeError, match="correct"):
        Loss(loss.total, 1)


@pytest.mark.parametrize("hidden", [0.0, 0.3, 1.0])
def test_a_token_loss_is_cross_entropy_over_the_labels_that_count(hidden):
    logits = torch.randn(6, 9, 11, generator=GEN, requires_grad=True)
    labels = torch.randint(0, 11, (6, 9), generator=GEN)
    labels = torch.where(torch.rand(6, 9, generator=GEN) < hidden, -100, labels)
    loss = token_loss(logits, {"labels": labels, "bytes": torch.arange(6)})
    flat = logits.flatten(0, 1), labels.flatten()
    expected = nn.functional.cross_entropy(*flat, ignore_index=-100, reduction="sum")
    assert torch.equal(loss.total, expected), "bit for bit"
    grads = [torch.autograd.grad(t, logits, retain_graph=True)[0] for t in (loss.total, expected)]
    assert torch.equal(*grads)
    logs = logits.detach().log_softmax(-1)
    rows = [
        float(sum(-logs[b, t, k] for t, k in enumerate(row) if k != -100))
        for b, row in enumerate(labels.tolist())
    ]
    torch.testing.assert_close(loss.each.detach(), torch.tensor(rows))
    assert loss.count == sum(k != -100 for row in labels.tolist() for k in row)
    right = (logits.argmax(-1) == labels).sum()
    assert loss.correct == right
    assert loss.extra == {"bytes": 15.0}


def test_batches_are_all_rows_once():
    part = {"a": torch.arange(10), "b": torch.arange(20).view(10, 2)}
    for size in (1, 3, 10, 99):
        pieces = list(batches(part, size))
        assert torch.equal(torch.cat([p["a"] for p in pieces]), part["a"])
        assert all(torch.equal(p["b"][:, 0], 2 * p["a"]) for p in pieces)
