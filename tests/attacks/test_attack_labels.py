"""Shares of labels are found where they are released, and not where nothing is."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune.attacks.digits import SHAPE, skewed
from fedprune.attacks.exposed import Exposed, noise_like
from fedprune.attacks.labels import correlation, histogram, templates_of
from fedprune.attacks.scene import Scene, message, scene
from tests.attacks.scenes import digits, seen_of

HEAD = {"include": ("head.weight",)}


def made(name: str, **more: Any) -> Scene:
    keys = {"task": "digits", "model": "mlp"}
    masks = more.pop("masks", None)
    return scene(name, skewed(digits(), 6, 32, 2), {**keys, **more}, masks=masks)


def truth(s: Scene, p: int) -> Tensor:
    return torch.bincount(s.host.shards[p].train["labels"], minlength=10).double()


def found(s: Scene, seen: Exposed) -> Tensor:
    shares = histogram(s, seen, templates_of(s, SHAPE))
    assert float(shares.sum()) == pytest.approx(1.0)
    assert bool((shares >= 0).all())
    return shares


def agreement(s: Scene) -> float:
    return sum(correlation(found(s, seen_of(s, p)), truth(s, p)) for p in range(6)) / 6


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
    assert agreement(made(name, **more)) >= least


def test_a_mask_alone_tells_the_dominant_class():
    s = made("votes", **HEAD)
    right = [found(s, seen_of(s, p)).argmax() == truth(s, p).argmax() for p in range(6)]
    assert sum(map(int, right)) >= 4


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["g", "|g|", "votes"])
def test_a_random_message_tells_nothing(name):
    s = made(name, **HEAD)
    like = message(s, 0)
    each = [correlation(found(s, noise_like(s, like, p)), truth(s, p)) for p in range(6)]
    assert abs(sum(each) / 6) < 0.4  # six times 10 classes: a deviation of 0.14


def test_inputs_of_layers_tell_no_labels():
    s = made("Σx²")
    assert correlation(found(s, seen_of(s)), truth(s, 0)) == 0.0


def test_what_a_mask_removed_is_not_looked_at():
    masks = {n: torch.ones_like(m) for n, m in made("g").question.masks.items()}
    masks["features.3.weight"][::3] = False
    pruned = made("g", masks=masks)
    assert correlation(found(pruned, seen_of(pruned)), truth(pruned, 0)) > 0.7
