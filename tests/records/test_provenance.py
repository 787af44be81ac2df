import json
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from fedprune import federate
from fedprune.engines.inline import inline_port
from fedprune.records import provenance
from fedprune.records.bound import began_in
from fedprune.records.provenance import commands_for
from fedprune.report.page import write_report
from fedprune.tasks.shards import data_digest
from tests.runs import house_of, tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_summary_says_where_it_comes_from(tmp_path):
    host = house_of(tiny(rounds=2, warmup=1, end=2))
    federate(host.config, inline_port(host), folder=tmp_path)
    said = json.loads((tmp_path / "summary.json").read_text())["provenance"]
    assert said["torch"] == torch.__version__
    assert said["data"] == data_digest(host.shards)
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert said["commit"].rstrip("+") == head.stdout.strip()
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert all(value in page for value in (said["date"], said["data"], said["machine"]))
    assert "config.toml" not in said


def test_without_git_or_a_record_nothing_is_made_up(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_HOME", tmp_path)
    assert provenance.provenance_of({"plugin": ""})["commit"] == ""
    (tmp_path / ".git").mkdir()  # no repository after all
    assert provenance.provenance_of({})["commit"] == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.provenance_of({})["commit"] == ""
    assert began_in(tmp_path) == {}


def test_a_folder_is_one_word_of_the_command():
    config = tiny()
    told = commands_for(config, Path("my runs/it's"), inline_port(house_of(config)))
    go_on = ["fedprune", "run", "--resume", "my runs/it's"]
    again = ["--config", "my runs/it's/config.toml", "--out", "my runs/it's-again"]
    assert shlex.split(told["resume"]) == go_on
    assert shlex.split(told["command"]) == [*go_on[:2], *again]
