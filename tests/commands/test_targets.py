from pathlib import Path

import pytest

from fedprune.commands.targets import check_file, check_folder


def test_what_can_be_written_passes_and_nothing_is_made(tmp_path):
    (tmp_path / "old.json").write_text("old")
    check_file("json", str(tmp_path / "old.json"))
    check_file("json", str(tmp_path / "new.json"))
    check_folder("out", str(tmp_path / "a" / "b"))
    assert [p.name for p in tmp_path.iterdir()] == ["old.json"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "is a folder"), ("gone/x", "there is no folder"), ("file/x", "there is no folder")],
)
def test_a_file_without_a_place_is_refused(tmp_path, name, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"^json='.*': {words}.*; allowed: a file in a folder"):
        check_file("json", str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "words"), [("", "is there already"), ("file/x/y", "file is no folder")]
)
def test_a_folder_without_a_place_is_refused(tmp_path, name, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"^out='.*': .*{words}; allowed: a new folder"):
        check_folder("out", str(tmp_path / name))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="of Linux")
def test_a_place_that_takes_no_files_is_refused_whoever_asks():
    with pytest.raises(ValueError, match=r"^out='/proc/x': /proc cannot be written to"):
        check_folder("out", "/proc/x")
    with pytest.raises(ValueError, match=r"^json='/proc/x': /proc cannot be written to"):
        check_file("json", "/proc/x")
