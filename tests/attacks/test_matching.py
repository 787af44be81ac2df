"""Search finds images where their gradient was seen, and not where it was not."""

import pytest
import torch

from fedprune.attacks.exposed import MessageProtection, exposed, noise_like
from fedprune.attacks.matching import Search, matched
from fedprune.attacks.scene import message, scene
from fedprune.tasks.task import Part

KEYS = {"task": "digits", "model": "cnn", "seed": 0}
QUICK = Search(steps=60, restarts=1)


def square() -> Part:
    """A bright square on a dark ground."""
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:6, 3:6] = 1.0
    return {"images": image, "labels": torch.tensor([3])}


def far(images: torch.Tensor) -> float:
    return float((images - square()["images"]).square().mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g", "|g|"])
def test_an_image_is_found_through_convolutions_and_not_in_a_random_message(name):
    made = scene(name, [square()], KEYS)
    like = message(made, 0)
    found = matched(made, exposed(made, [like], MessageProtection("")), square(), QUICK)
    chance = matched(made, noise_like(made, like, 0), square(), QUICK)
    assert found.shape == (1, 1, 8, 8)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert far(found) < 0.5 * far(chance)


def test_the_image_itself_is_not_looked_at():
    made = scene("g", [square()], KEYS)
    seen = exposed(made, [message(made, 0)], MessageProtection(""))
    blank = {**square(), "images": torch.zeros(1, 1, 8, 8)}
    few = Search(steps=3, restarts=2)
    assert torch.equal(matched(made, seen, square(), few), matched(made, seen, blank, few))


def test_a_search_through_batchnorm_in_training_leaves_the_model_alone():
    made = scene("change", [square()], KEYS)
    seen = exposed(made, [message(made, 0)], MessageProtection(""))
    before = {n: t.clone() for n, t in made.host.model.state_dict().items()}
    matched(made, seen, square(), Search(steps=3, restarts=1))
    after = made.host.model.state_dict()
    assert all(torch.equal(t, after[n]) for n, t in before.items())


def test_the_images_of_several_clients_are_searched_for_at_once():
    parts = [square(), square()]
    made = scene("g²", parts, KEYS)
    messages = [message(made, p) for p in range(2)]
    seen = exposed(made, messages, MessageProtection("", clients=2))
    both = {name: torch.cat([p[name] for p in parts]) for name in square()}
    assert matched(made, seen, both, Search(steps=3, restarts=1)).shape == (2, 1, 8, 8)


def test_what_is_not_of_gradients_is_refused():
    made = scene("Σx²", [square()], KEYS)
    seen = exposed(made, [message(made, 0)], MessageProtection(""))
    with pytest.raises(ValueError, match="quantity=Σx²: is not of gradients"):
        matched(made, seen, square(), QUICK)
