import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedprune.tasks.language import (
    BY_OWNER,
    FEWEST_WINDOWS,
    WINDOW,
    OwnedText,
    cut_streams,
    dealt,
    one_window,
    windows,
)
from fedprune.tasks.losses import label_tokens
from fedprune.tasks.task import Part
from fedprune.tasks.token_rows import encode
from fedprune.tasks.tokenization import ALPHABET

PAD = 0
TEXT = st.text(alphabet=[*ALPHABET[2:], "é", "—", "\t"], min_size=1, max_size=3 * WINDOW + 5)


def characters(ids: Tensor) -> str:
    return "".join(ALPHABET[i] for i in ids.tolist())


def spoken(part: Part) -> str:
    """The text of a part: its first input and then every label that counts."""
    labels = part["labels"].flatten()
    return characters(part["inputs"].flatten()[:1]) + characters(labels[labels != -100])


@given(TEXT)
def test_every_character_but_the_first_is_a_label_exactly_once(text):
    ids = encode(text)
    part = windows(ids)
    inputs, labels = part["inputs"], part["labels"]
    counted = labels != -100
    assert labels[counted].tolist() == ids[1:].tolist()
    assert inputs[counted].tolist() == ids[:-1].tolist(), "a label follows its input"
    assert inputs[~counted].unique().tolist() in ([], [PAD])
    assert counted.flatten()[: len(text) - 1].all(), "padding is at the end"
    assert label_tokens(part) == len(text) - 1
    assert inputs.shape == labels.shape == (max(1, -(-(len(text) - 1) // WINDOW)), WINDOW)


@pytest.mark.parametrize("n", [1234, FEWEST_WINDOWS * WINDOW])
def test_the_cut_keeps_time(n, asked):
    text = "".join(ALPHABET[3 + i % 95] for i in range(n))
    shard = cut_streams([text], asked("shakespeare"), "causal")[0]
    parts = [spoken(part) for part in (shard.train, shard.validation, shard.test)]
    assert "".join(parts) == text
    assert [len(part) for part in parts] == [n - 2 * (n // 10), n // 10, n // 10]


@given(st.lists(st.integers(1, 4), min_size=2, max_size=70), st.integers(8, 30))
def test_bytes_are_those_of_the_labels(sizes, length):
    part = windows(torch.arange(len(sizes)), torch.tensor(sizes), length, pad=99)
    assert int(part["bytes"].sum()) == sum(sizes[1:])
    for row, size in zip(part["labels"].tolist(), part["bytes"].tolist(), strict=True):
        assert size == [sizes[label] if label != -100 else 0 for label in row]


@pytest.mark.parametrize("task", ["shakespeare", "language-modelling"])
def test_bits_per_byte_count_every_byte_that_is_known(task, asked):
    text = "Tell the señor — he waits at the gate, and has a sword! " * 10
    shard = cut_streams([text], asked(task, length=16), "causal")[0]
    parts = (shard.train, shard.validation, shard.test)
    data = text.encode()
    if task == "shakespeare":  # an alphabet hides two characters of each line, five bytes
        data = data.replace("ñ".encode(), b"?").replace("—".encode(), b"?")
    held = len(data) // 10
    firsts = (0, len(data) - 2 * held, len(data) - held)  # the first symbol is no label
    hidden = [i for i, c in enumerate(data) if c == ord("?") and i not in firsts]
    assert sum(int(p["bytes"].sum()) for p in parts) == len(data) - 3 - len(hidden)
    with pytest.raises(ValueError, match=r"model='llama': 50.0% of the characters .*; allowed: at"):
        cut_streams(["añ" * 300], asked("shakespeare"), "causal")


ROWS: list[OwnedText] = [
    (f"owner {i % 5}", ("red", "blue")[i % 2], f"{i:03d}" * (20 + i % 5)) for i in range(100)
]


@pytest.mark.parametrize("split", BY_OWNER)
def test_every_split_deals_the_texts_of_those_who_write_most(split, asked):
    config = asked("shakespeare", clients=3, split=split)
    shares = dealt(ROWS, config, BY_OWNER[split], "owners have", 10)
    assert len(shares) == 3
    expected = [text for owner, _, text in ROWS if owner in ("owner 2", "owner 3", "owner 4")]
    assert sorted(t for own in shares for t in own) == sorted(expected)
    assert all(own == sorted(own) for own in shares), "in the order they were written"
    if split == "natural":
        assert all(len({int(t[:3]) % 5 for t in own}) == 1 for own in shares)


def test_owners_that_write_too_little_are_no_clients(asked):
    most = sum(len(text) for owner, _, text in ROWS if owner == "owner 4")
    config = asked("shakespeare", clients=2, split="natural")
    with pytest.raises(ValueError, match=f"clients=2: 1 owners have {most} char.*: 1 to 1"):
        dealt(ROWS, config, "owner", "owners have", most)


def test_the_dummy_has_the_shape_of_an_example(asked):
    part = one_window(asked("shakespeare", length=32))
    assert {name: t.shape for name, t in part.items()} == {"inputs": (1, 32), "labels": (1, 32)}
