"""Closed-form inversion: exact where nothing protects, chance where nothing is there."""

from typing import Any

import pytest
import torch

from fedprune.attacks.digits import SHAPE
from fedprune.attacks.exposed import Exposed, noise_like
from fedprune.attacks.inversion import factors, inverted
from fedprune.attacks.scene import Scene, message, scene
from fedprune.tasks.task import Part
from fedprune.tensors.named import Masks
from tests.attacks.scenes import FIRST, images, seen_of

PARTS = 12


def made(name: str, clients: int = 1, masks: Masks | None = None, **more: Any) -> Scene:
    keys = {"task": "digits", "model": "mlp", "seed": 1, **more}
    return scene(name, images(PARTS)[:clients], keys, masks=masks)


def found(s: Scene, seen: Exposed) -> Part:
    return inverted(s, seen, FIRST, SHAPE)


def truth(s: Scene) -> torch.Tensor:
    return torch.cat([shard.train["images"] for shard in s.host.shards.values()]).double()


def worst(s: Scene, **protection: Any) -> float:
    """How far any pixel of the first client's image is off."""
    return float((found(s, seen_of(s, **protection))["images"] - truth(s)[:1]).abs().max())


@pytest.mark.parametrize("name", ["g", "|g|", "g²", "|g·w|", "change"])
def test_positive_control_an_image_comes_back_exactly_and_its_label(name):
    s = made(name, 6)
    for p, shard in s.host.shards.items():
        back = found(s, seen_of(s, p))
        # A change is a difference of float32 weights that are larger than it.
        far = (back["images"] - shard.train["images"].double()).abs().max()
        assert far <= (1e-5 if name == "change" else 1e-6)
        assert int(back["labels"]) == int(shard.train["labels"])


def test_sums_of_squared_inputs_of_one_image_are_that_image():
    assert worst(made("Σx²")) <= 1e-6


def test_clipping_hides_nothing():
    """But the scale: how bright the image is then follows from the shape of its gradient."""
    assert worst(made("|g|"), clip=True) <= 1e-4


def test_a_pruned_model_hides_nothing_where_a_row_and_a_column_are_left():
    gen, whole = torch.Generator().manual_seed(0), made("|g|").question.masks
    masks = {n: torch.rand(m.shape, generator=gen) < 0.2 for n, m in whole.items()}
    assert worst(made("|g|", masks=masks)) <= 1e-4


def test_what_a_client_keeps_back_is_filled_in():
    s = made("change", defence=0.1)
    assert (message(s, 0) == 0).sum() > (message(made("change"), 0) == 0).sum()
    assert worst(s) < 1e-4


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["g", "|g|", "g²", "|g·w|", "Σx²", "votes"])
def test_negative_control_a_random_message_gives_chance(name):
    """What is made of it is no closer to the client's image than to those of others."""
    s, places = made(name, PARTS), []
    for p in range(PARTS):
        back = found(s, noise_like(s, message(s, p), p))
        far = (truth(s) - back["images"]).square().flatten(1).sum(1)
        places.append(float((far < far[p]).sum()) / (PARTS - 1))
    assert sum(places) / PARTS > 0.25  # 0.5 on average, 0.25 is three deviations below


@pytest.mark.slow
def test_labels_of_random_messages_are_right_by_luck_alone():
    s = made("|g|")
    right = s.host.shards[0].train["labels"]
    told = [found(s, noise_like(s, message(s, 0), seed))["labels"] for seed in range(20)]
    assert sum(map(right.equal, told)) <= 8  # of 20 at 1 in 10: more is less likely than 1e-4


@pytest.mark.parametrize("signed", [False, True])
def test_factors_of_a_product_are_found_again(signed):
    gen = torch.Generator().manual_seed(2)
    left = torch.randn(60, 3, generator=gen, dtype=torch.float64)
    left = left if signed else left.clamp(min=0)
    right = torch.rand(3, 20, generator=gen, dtype=torch.float64)
    right[right < 0.5] = 0.0
    known = left @ right
    ours, theirs = factors(known, torch.ones_like(known), 3, signed=signed, seed=1)
    assert float((ours @ theirs - known).norm() / known.norm()) < 0.05
    assert bool((theirs >= 0).all())


def test_a_sum_of_absolute_gradients_gives_more_than_chance():
    """The best of ten images beside the best of ten made of a random message."""
    s = made("|g|", 10)

    def missed(seen: Exposed) -> float:
        back = found(s, seen)["images"].flatten(1)
        return float(torch.cdist(truth(s).flatten(1), back).square().amin(1).mean())

    chance = noise_like(s, message(s, 0), 0, clients=10)
    assert missed(seen_of(s, *range(10))) < 0.6 * missed(chance)
