import json
import subprocess
import sys

import pytest

from fedprune import federate
from fedprune.commands.main import main
from fedprune.study.design import read_design
from fedprune.study.playing import cell_folder, last_line
from tests.runs import STUDY


@pytest.mark.slow
def test_cells_are_played_once_and_one_that_fails_is_a_cell(tmp_path, capsys):
    (tmp_path / "s.toml").write_text(STUDY.replace('"magnitude", ', ""))
    (there, cell), out = read_design(tmp_path / "s.toml").cells, tmp_path / "out"
    federate(there.config, folder=cell_folder(there, out))
    before = cell_folder(there, out).stat().st_mtime_ns
    broken = cell_folder(cell, out)
    broken.write_text("a file where the run's folder would be")
    arguments = ["study", str(tmp_path / "s.toml"), "--out", str(out), "--jobs", "2"]
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert said.count("there already") == 1
    assert f"no result {cell.name}: out=" in said
    assert "1 of 2 runs have a result" in (out / "study.html").read_text()
    broken.unlink()
    assert main(arguments) == 0
    assert "2 of 2 runs have a result" in (out / "study.html").read_text()
    summary = json.loads((broken / "summary.json").read_text())
    assert summary["weights_digest"] == federate(cell.config).summary["weights_digest"]
    assert cell_folder(there, out).stat().st_mtime_ns == before


def test_a_dry_run_names_the_runs_and_plays_none(tmp_path, capsys):
    (tmp_path / "s.toml").write_text(STUDY)
    out = tmp_path / "out"
    assert main(["study", str(tmp_path / "s.toml"), "--out", str(out), "--dry-run"]) == 0
    names = [cell.name for cell in read_design(tmp_path / "s.toml").cells]
    assert capsys.readouterr().out.splitlines() == names
    assert not out.exists()


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "x.log"
    assert last_line(log) == "it wrote nothing"
    log.write_text("a\nfedprune run: error: lr=-1: too small\n\n")
    assert last_line(log) == "lr=-1: too small"
    log.write_text("a\nKilled\n")
    assert last_line(log) == "Killed"


@pytest.mark.slow
def test_no_run_waits_for_what_only_a_study_needs():
    code = "import sys, fedprune.commands.run; print('scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
