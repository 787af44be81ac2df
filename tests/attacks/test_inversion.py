"""Closed-form inversion: exact where nothing protects, chance where nothing is there."""

import pytest
import torch

from fedprune.attacks.exposed import MessageProtection, exposed, noise_like
from fedprune.attacks.inversion import factors, inverted
from fedprune.attacks.scene import message, scene
from fedprune.tasks.task import Part

KEYS = {"task": "digits", "model": "mlp", "seed": 1}
FIRST, SHAPE = "features.1.weight", torch.Size([1, 8, 8])
PLAIN = MessageProtection("")


def digits(n: int) -> list[Part]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target).long()
    return [{"images": images[i : i + 1], "labels": labels[i : i + 1]} for i in range(n)]


PARTS = digits(12)


def worst(found: Part, part: Part) -> float:
    return float((found["images"] - part["images"].double()).abs().max())


@pytest.mark.parametrize("name", ["g", "|g|", "g²", "|g·w|", "change"])
def test_positive_control_an_image_comes_back_exactly_and_its_label(name):
    made = scene(name, PARTS[:6], KEYS)
    for p in range(6):
        seen = exposed(made, [message(made, p)], PLAIN)
        found = inverted(made, seen, FIRST, SHAPE)
        # A change is a difference of float32 weights that are larger than it.
        assert worst(found, PARTS[p]) <= (1e-5 if name == "change" else 1e-6)
        assert int(found["labels"]) == int(PARTS[p]["labels"])


def test_sums_of_squared_inputs_of_one_image_are_that_image():
    made = scene("Σx²", PARTS[:1], KEYS)
    found = inverted(made, exposed(made, [message(made, 0)], PLAIN), FIRST, SHAPE)
    assert worst(found, PARTS[0]) <= 1e-6


def test_clipping_hides_nothing():
    """But the scale: how bright the image is then follows from the shape of its gradient."""
    made = scene("|g|", PARTS[:1], KEYS)
    seen = exposed(made, [message(made, 0)], MessageProtection("", clip=True))
    assert worst(inverted(made, seen, FIRST, SHAPE), PARTS[0]) <= 1e-4


def test_a_pruned_model_hides_nothing_where_a_row_and_a_column_are_left():
    made = scene("|g|", PARTS[:1], KEYS)
    gen = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(m.shape, generator=gen) < 0.2 for n, m in made.question.masks.items()}
    made = scene("|g|", PARTS[:1], KEYS, masks=masks)
    seen = exposed(made, [message(made, 0)], PLAIN)
    assert worst(inverted(made, seen, FIRST, SHAPE), PARTS[0]) <= 1e-4


def place(found: Part, p: int) -> float:
    """0, if no other digit is closer to what was found than the one that is there; 1 at worst."""
    truth = torch.cat([part["images"] for part in PARTS]).double()
    far = (truth - found["images"]).square().flatten(1).sum(1)
    return float((far < far[p]).sum()) / (len(PARTS) - 1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["g", "|g|", "g²", "|g·w|", "Σx²", "votes"])
def test_negative_control_a_random_message_gives_chance(name):
    """What is made of it is no closer to the client's image than to those of others."""
    made = scene(name, PARTS, KEYS)
    places = []
    for p in range(len(PARTS)):
        seen = noise_like(made, message(made, p), p)
        places.append(place(inverted(made, seen, FIRST, SHAPE), p))
    assert sum(places) / len(places) > 0.25  # 0.5 on average, 0.25 is three deviations below


@pytest.mark.slow
def test_labels_of_random_messages_are_right_by_luck_alone():
    made = scene("|g|", PARTS[:1], KEYS)
    right = int(PARTS[0]["labels"])
    found = [
        int(inverted(made, noise_like(made, message(made, 0), s), FIRST, SHAPE)["labels"])
        for s in range(20)
    ]
    assert found.count(right) <= 8  # of 20 at 1 in 10: more has a probability below 1e-4


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
    made = scene("|g|", PARTS[:10], KEYS)
    messages = [message(made, p) for p in range(10)]
    truth = torch.cat([part["images"] for part in PARTS[:10]]).double().flatten(1)

    def missed(found: Part) -> float:
        images = found["images"].flatten(1)
        return float(torch.cdist(truth, images).square().amin(1).mean() / 64)

    summed = inverted(
        made, exposed(made, messages, MessageProtection("", clients=10)), FIRST, SHAPE
    )
    chance = inverted(made, noise_like(made, messages[0], 0, clients=10), FIRST, SHAPE)
    assert missed(summed) < 0.6 * missed(chance)


def test_what_a_client_keeps_back_is_filled_in():
    made = scene("change", PARTS[:1], {**KEYS, "defence": 0.1})
    sent = message(made, 0)
    whole = message(scene("change", PARTS[:1], KEYS), 0)
    assert (sent == 0).sum() > (whole == 0).sum()
    found = inverted(made, exposed(made, [sent], PLAIN), FIRST, SHAPE)
    assert (found["images"] - PARTS[0]["images"].double()).abs().max() < 1e-4
