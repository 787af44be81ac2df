"""What is read of a finished run is as it was written, or refused with the file's name."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedprune
from fedprune.client.teacher import teacher_in
from fedprune.commands.main import main
from fedprune.commands.subject import subject
from fedprune.records.previous import previous_run
from fedprune.records.results import READ_AGAIN
from fedprune.report.reading import read_run
from fedprune.runtime.sums import SUMS_NAME, check_sums
from tests.records.harm import all_refused
from tests.runs import tiny


@pytest.fixture
def folder(run_folder, tmp_path) -> Path:
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [*(n for n in READ_AGAIN if "adapter" not in n), SUMS_NAME])
def test_every_corruption_of_every_kind_of_file_is_refused_by_its_name(folder, name):
    path = folder / name
    all_refused(path, lambda: check_sums(folder))
    for replaced in (path.unlink, path.mkdir):
        replaced()
        with pytest.raises(ValueError, match=name):
            check_sums(folder)


READERS: dict[str, Callable[[Path], Any]] = {
    "load": fedprune.load,
    "teacher": lambda folder: teacher_in(str(folder)),
    "init": lambda folder: previous_run(str(folder)),
    "measure, export, audit, analyse": lambda folder: subject(str(folder)),
    "report": read_run,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["summary.json", "config.toml", "model.fedprune"])
def test_every_reader_looks(folder, name, reader):
    READERS[reader](folder)
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=name):
        READERS[reader](folder)
    if name == "model.fedprune" and reader in {"load", "measure, export, audit, analyse"}:
        path.unlink()  # it is missed, the run not called unfinished
        with pytest.raises(ValueError, match=r"model\.fedprune: gone, though"):
            READERS[reader](folder)


@pytest.mark.parametrize("reader", READERS)
def test_without_its_digests_a_finished_run_is_not_read(folder, reader):
    (folder / SUMS_NAME).unlink()
    with pytest.raises(ValueError, match=f"{SUMS_NAME}: gone"):
        READERS[reader](folder)
    (folder / "summary.json").unlink()
    if reader not in {"load", "teacher", "report"}:  # these read model.fedprune alone, or nothing
        with pytest.raises(ValueError, match=f"{SUMS_NAME}: gone"):
            READERS[reader](folder)


def test_a_file_of_another_run_is_refused_though_it_is_sound(folder, tmp_path):
    other = tmp_path / "other"
    fedprune.federate(tiny(model="mlp", rounds=2, warmup=0, end=1, local_steps=1), folder=other)
    for name in ("summary.json", "config.toml", "model.fedprune", "figures.json", "rounds.jsonl"):
        was = (folder / name).read_bytes()
        shutil.copyfile(other / name, folder / name)
        with pytest.raises(ValueError, match=f"{name}: damaged or changed"):
            check_sums(folder)
        (folder / name).write_bytes(was)


def test_a_command_says_it_in_a_line_and_coreutils_agree(folder, capsys):
    line = ["sha256sum", "--strict", "-c", SUMS_NAME]
    assert subprocess.run(line, cwd=folder, capture_output=True, check=False).returncode == 0
    path = folder / "summary.json"
    path.write_text(path.read_text().replace("0.", "1.", 1))
    assert main(["measure", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "summary.json: damaged or changed" in said
    assert len(said.splitlines()) == 1
    assert subprocess.run(line, cwd=folder, capture_output=True, check=False).returncode != 0
