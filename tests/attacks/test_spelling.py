"""The order of characters, by search."""

import pytest
import torch

from fedprune.attacks.exposed import MessageProtection, exposed
from fedprune.attacks.scene import message, scene
from fedprune.attacks.spelling import in_place, spelled
from fedprune.tasks.task import Part

TABLE = "model.embed_tokens.weight"


def truth_of(part: Part) -> list[int]:
    return [*part["inputs"][0].tolist(), int(part["labels"][0, -1])]


@pytest.mark.slow
def test_more_characters_are_in_place_than_in_any_order(texts, text_keys):
    made = scene("change", texts, text_keys)
    truth = truth_of(texts[0])
    seen = exposed(made, [message(made, 0)], MessageProtection(""))
    candidates = sorted(set(truth))
    found = spelled(made, seen, TABLE, candidates, len(truth) - 1, steps=60)
    assert set(found) <= set(candidates)
    gen = torch.Generator().manual_seed(0)
    luck = [
        in_place([truth[i] for i in torch.randperm(len(truth), generator=gen)], truth)
        for _ in range(50)
    ]
    assert in_place(found, truth) > sum(luck) / 50


def test_what_is_not_of_gradients_is_refused(texts, text_keys):
    made = scene("Σx²", texts, text_keys)
    seen = exposed(made, [message(made, 0)], MessageProtection(""))
    with pytest.raises(ValueError, match="quantity=Σx²: is not of gradients"):
        spelled(made, seen, TABLE, [1], 3)


def test_in_place_counts_places():
    assert in_place([1, 2, 3, 4], [1, 3, 2, 4]) == 0.5
