"""A small causal language model and short texts for it."""

import pytest
import torch

from fedprune.tasks.task import Part

LENGTH = 12
TEXTS = ("to be or not ", "now is the wi", "what a piece ")


def as_part(text: str) -> Part:
    from fedprune.tasks.tokenization import ALPHABET

    ids = torch.tensor([[ALPHABET.index(c) for c in text]])
    return {"inputs": ids[:, :-1], "labels": ids[:, 1:], "bytes": torch.tensor([LENGTH])}


@pytest.fixture(scope="session")
def texts() -> list[Part]:
    return [as_part(text) for text in TEXTS]


@pytest.fixture(scope="session")
def text_keys() -> dict[str, object]:
    return {"task": "shakespeare", "length": LENGTH, "depth": 1, "width": 64, "seed": 0}
