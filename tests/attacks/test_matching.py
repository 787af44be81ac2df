"""Search finds images where their gradient was seen, and not where it was not."""

import pytest
import torch

from fedprune.attacks.exposed import noise_like
from fedprune.attacks.matching import Search, matched
from fedprune.attacks.scene import Scene, message, scene
from tests.attacks.scenes import seen_of

SQUARE = {"images": torch.zeros(1, 1, 8, 8), "labels": torch.tensor([3])}
SQUARE["images"][..., 2:6, 3:6] = 1.0
FEW = Search(steps=3, restarts=1)


def made(name: str, clients: int = 1) -> Scene:
    """Clients that all have a bright square on a dark ground."""
    return scene(name, [SQUARE] * clients, {"task": "digits", "model": "cnn", "seed": 0})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g", "|g|"])
def test_an_image_is_found_through_convolutions_and_not_in_a_random_message(name):
    s, quick = made(name), Search(steps=60, restarts=1)
    found, chance = (
        matched(s, seen, SQUARE, quick) for seen in (seen_of(s), noise_like(s, message(s, 0), 0))
    )
    assert found.shape == (1, 1, 8, 8)
    assert bool(((found >= 0) & (found <= 1)).all())
    far, farther = ((x - SQUARE["images"]).square().mean() for x in (found, chance))
    assert far < 0.5 * farther


def test_the_image_itself_is_not_looked_at():
    s, few = made("g"), Search(steps=3, restarts=2)
    blank = {**SQUARE, "images": torch.zeros(1, 1, 8, 8)}
    found, again = (matched(s, seen_of(s), part, few) for part in (SQUARE, blank))
    assert torch.equal(found, again)


def test_a_search_through_batchnorm_in_training_leaves_the_model_alone():
    s = made("change")
    seen = seen_of(s)
    before = {n: t.clone() for n, t in s.host.model.state_dict().items()}
    matched(s, seen, SQUARE, FEW)
    after = s.host.model.state_dict()
    assert all(torch.equal(t, after[n]) for n, t in before.items())


def test_the_images_of_several_clients_are_searched_for_at_once():
    s = made("g²", 2)
    both = {name: torch.cat([values] * 2) for name, values in SQUARE.items()}
    assert matched(s, seen_of(s, 0, 1), both, FEW).shape == (2, 1, 8, 8)


def test_what_is_not_of_gradients_is_refused():
    s = made("Σx²")
    with pytest.raises(ValueError, match="quantity=Σx²: is not of gradients"):
        matched(s, seen_of(s), SQUARE, FEW)
