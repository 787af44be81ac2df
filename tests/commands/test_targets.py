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
    ("check", "name", "words"),
    [
        (check_file, "", "is a folder.*; allowed: a file in a folder"),
        (check_file, "gone/x", "there is no folder.*; allowed: a file in a folder"),
        (check_file, "file/x", "there is no folder.*; allowed: a file in a folder"),
        (check_folder, "", "is there already; allowed: a new folder"),
        (check_folder, "file/x/y", "file is no folder; allowed: a new folder"),
    ],
)
def test_what_has_no_place_is_refused(check, tmp_path, name, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"^json='.*': .*{words}"):
        check("json", str(tmp_path / name))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="of Linux")
def test_a_place_that_takes_no_files_is_refused_whoever_asks():
    for check in (check_folder, check_file):
        with pytest.raises(ValueError, match=r"^json='/proc/x': /proc cannot be written to"):
            check("json", "/proc/x")
