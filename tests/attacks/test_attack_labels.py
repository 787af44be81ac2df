"""Shares of labels are found where they are released, and not where nothing is."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune.attacks.exposed import Exposed, MessageProtection, exposed, noise_like
from fedprune.attacks.labels import correlation, histogram, templates_of
from fedprune.attacks.scene import Scene, message, scene
from fedprune.tasks.task import Part

SHAPE, PLAIN = torch.Size([1, 8, 8]), MessageProtection("")
HEAD = {"include": ("head.weight",)}


def shard(seed: int, size: int = 32) -> Part:
    """Digits with skewed labels: half of them of one class."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target)
    gen = torch.Generator().manual_seed(seed)
    weights = torch.rand(10, generator=gen).pow(4)
    weights[seed % 10] = 3.0
    rows = torch.multinomial(weights[labels.long()], size, generator=gen)
    return {"images": images[rows].unsqueeze(1), "labels": labels[rows].long()}


def truth(part: Part) -> Tensor:
    return torch.bincount(part["labels"], minlength=10).double()


def made(name: str, model: str = "mlp", **more: Any) -> Scene:
    return scene(name, [shard(s) for s in range(6)], {"task": "digits", "model": model, **more})


def found(s: Scene, seen: Exposed) -> Tensor:
    shares = histogram(s, seen, templates_of(s, SHAPE))
    assert float(shares.sum()) == pytest.approx(1.0)
    assert bool((shares >= 0).all())
    return shares


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "more", "least"),
    [
        ("change", {}, 0.95),
        ("g", HEAD, 0.95),
        ("g²", HEAD, 0.95),
        ("|g|", HEAD, 0.6),
        ("|g·w|", HEAD, 0.6),
        ("g", {}, 0.8),
        ("g²", {}, 0.7),
    ],
)
def test_shares_are_found(name, more, least):
    s = made(name, **more)
    each = [
        correlation(found(s, exposed(s, [message(s, p)], PLAIN)), truth(shard(p))) for p in range(6)
    ]
    assert sum(each) / 6 >= least


def test_a_mask_alone_tells_the_dominant_class():
    s = made("votes", **HEAD)
    right = [
        found(s, exposed(s, [message(s, p)], PLAIN)).argmax() == truth(shard(p)).argmax()
        for p in range(6)
    ]
    assert sum(map(int, right)) >= 4


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["g", "|g|", "votes"])
def test_a_random_message_tells_nothing(name):
    s = made(name, **HEAD)
    like = message(s, 0)
    each = [correlation(found(s, noise_like(s, like, p)), truth(shard(p))) for p in range(6)]
    assert abs(sum(each) / 6) < 0.4  # six times 10 classes: a deviation of 0.14


def test_inputs_of_layers_tell_no_labels():
    s = made("Σx²")
    shares = found(s, exposed(s, [message(s, 0)], PLAIN))
    assert correlation(shares, truth(shard(0))) == 0.0


def test_what_a_mask_removed_is_not_looked_at():
    """The same shares, whatever stands where nothing is released."""
    s = made("g")
    masks = {n: torch.ones_like(m) for n, m in s.question.masks.items()}
    masks["features.3.weight"][::3] = False
    pruned = scene("g", [shard(0)], {"task": "digits", "model": "mlp"}, masks=masks)
    seen = exposed(pruned, [message(pruned, 0)], PLAIN)
    assert correlation(found(pruned, seen), truth(shard(0))) > 0.7
