"""Which characters a text holds is in every quantity that reads embeddings, and not in noise."""

from typing import Any

import pytest
import torch

from fedprune.attacks.exposed import MessageProtection, exposed, noise_like
from fedprune.attacks.scene import Scene, message, scene
from fedprune.attacks.words import evidence, found_tokens, token_vectors
from fedprune.scores.inputs import inputs_of
from fedprune.tasks.task import Part

TABLE = "model.embed_tokens.weight"
READERS = tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")
PLAIN = MessageProtection("")


def recall(made: Scene, part: Part, seen: Any) -> float:
    truth = set(part["inputs"].flatten().tolist())
    found = found_tokens(evidence(made, seen, TABLE, READERS), len(truth))
    return len(truth & set(found)) / len(truth)


@pytest.mark.parametrize("name", ["change", "g", "Σx²"])
def test_all_characters_are_found_though_no_score_of_embeddings_is_sent(name, texts, text_keys):
    made = scene(name, texts, text_keys)
    for p, part in enumerate(texts):
        seen = exposed(made, [message(made, p)], PLAIN)
        assert recall(made, part, seen) == 1.0


@pytest.mark.parametrize("name", ["g", "|g|", "g²", "|g·w|", "votes"])
def test_scores_of_embeddings_list_the_characters(name, texts, text_keys):
    made = scene(name, texts, {**text_keys, "include": (TABLE,)})
    seen = exposed(made, [message(made, 0)], PLAIN)
    assert recall(made, texts[0], seen) == 1.0


def test_absolute_gradients_of_a_projection_tell_more_than_chance(texts, text_keys):
    made = scene("|g|", texts, text_keys)
    each = [recall(made, t, exposed(made, [message(made, p)], PLAIN)) for p, t in enumerate(texts)]
    assert sum(each) / len(each) > 0.4  # of 98 characters 8 to 11 occur


@pytest.mark.parametrize("name", ["g", "|g|", "Σx²"])
def test_a_random_message_names_characters_by_luck(name, texts, text_keys):
    made = scene(name, texts, text_keys)
    like = message(made, 0)
    each = [recall(made, texts[0], noise_like(made, like, s)) for s in range(6)]
    assert sum(each) / 6 < 0.3


def test_what_a_token_sends_into_a_layer_is_what_the_layer_sees(texts, text_keys):
    made = scene("Σx²", texts, text_keys)
    seen = exposed(made, [message(made, 0)], PLAIN)
    vectors = token_vectors(made, TABLE, READERS[0])
    want = vectors[texts[0]["inputs"].flatten()].square().sum(0)
    torch.testing.assert_close(seen.values[inputs_of(READERS[0])], want, rtol=1e-4, atol=1e-5)
