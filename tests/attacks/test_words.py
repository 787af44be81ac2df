"""Which characters a text holds is in every quantity that reads embeddings, and not in noise."""

from typing import Any

import pytest
import torch

from fedprune.attacks.exposed import noise_like
from fedprune.attacks.scene import Scene, message, scene
from fedprune.attacks.spelling import in_place, spelled
from fedprune.attacks.words import evidence, found_tokens, token_vectors
from fedprune.scores.inputs import inputs_of
from fedprune.tasks.task import Part
from fedprune.tasks.tokenization import ALPHABET
from tests.attacks.scenes import seen_of

TABLE = "model.embed_tokens.weight"
READERS = tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")
LENGTH = 12


def as_part(text: str) -> Part:
    ids = torch.tensor([[ALPHABET.index(c) for c in text]])
    return {"inputs": ids[:, :-1], "labels": ids[:, 1:], "bytes": torch.tensor([LENGTH])}


PARTS = [as_part(text) for text in ("to be or not ", "now is the wi", "what a piece ")]


def made(name: str, **more: Any) -> Scene:
    """A small causal language model, and a short text for each client."""
    keys = {"task": "shakespeare", "length": LENGTH, "depth": 1, "width": 64, "seed": 0}
    return scene(name, PARTS, {**keys, **more})


def recall(s: Scene, seen: Any, p: int = 0) -> float:
    truth = set(PARTS[p]["inputs"].flatten().tolist())
    found = found_tokens(evidence(s, seen, TABLE, READERS), len(truth))
    return len(truth & set(found)) / len(truth)


@pytest.mark.parametrize("name", ["change", "g", "Σx²"])
def test_all_characters_are_found_though_no_score_of_embeddings_is_sent(name):
    s = made(name)
    assert [recall(s, seen_of(s, p), p) for p in range(3)] == [1.0] * 3


@pytest.mark.parametrize("name", ["g", "|g|", "g²", "|g·w|", "votes"])
def test_scores_of_embeddings_list_the_characters(name):
    s = made(name, include=(TABLE,))
    assert recall(s, seen_of(s)) == 1.0


def test_absolute_gradients_of_a_projection_tell_more_than_chance():
    s = made("|g|")
    assert sum(recall(s, seen_of(s, p), p) for p in range(3)) / 3 > 0.4  # of 98, 8 to 11 occur


@pytest.mark.parametrize("name", ["g", "|g|", "Σx²"])
def test_a_random_message_names_characters_by_luck(name):
    s = made(name)
    like = message(s, 0)
    assert sum(recall(s, noise_like(s, like, seed)) for seed in range(6)) / 6 < 0.3


def test_what_a_token_sends_into_a_layer_is_what_the_layer_sees():
    s = made("Σx²")
    vectors = token_vectors(s, TABLE, READERS[0])
    want = vectors[PARTS[0]["inputs"].flatten()].square().sum(0)
    torch.testing.assert_close(seen_of(s).values[inputs_of(READERS[0])], want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_more_characters_are_in_place_than_in_any_order():
    s, part = made("change"), PARTS[0]
    truth = [*part["inputs"][0].tolist(), int(part["labels"][0, -1])]
    candidates = sorted(set(truth))
    found = spelled(s, seen_of(s), TABLE, candidates, len(truth) - 1, steps=60)
    assert set(found) <= set(candidates)
    gen = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(truth), generator=gen) for _ in range(50)]
    luck = [in_place([truth[i] for i in order], truth) for order in orders]
    assert in_place(found, truth) > sum(luck) / 50
    assert in_place([1, 2, 3, 4], [1, 3, 2, 4]) == 0.5


def test_an_order_is_not_sought_in_what_is_not_of_gradients():
    s = made("Σx²")
    with pytest.raises(ValueError, match="quantity=Σx²: is not of gradients"):
        spelled(s, seen_of(s), TABLE, [1], 3)
