"""The command that measures what leaks: options, page, figures."""

import json

import pytest

from fedprune.attacks.page import Passage, Table
from simulations import privacy


def told(study: privacy.Study, tick: privacy.Tick) -> privacy.Findings:
    tick()
    table = Table(["what", "how much"], [["g", f"{len(study.seeds)}"]], ("what",))
    return [Passage("Made up", ("One.",), table)], {"rows": [list(study.epsilons)]}


def test_a_page_and_figures_are_written_and_help_names_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(privacy.PARTS, "made-up", privacy.Chapter("x", told))
    arguments = ["--parts", "made-up", "--seeds", "2", "--epsilon", "3,1", "--out", f"{tmp_path}/a"]
    assert privacy.main(arguments) == 0
    page = (tmp_path / "a" / "page.html").read_text("utf-8")
    assert "Made up" in page
    assert "--epsilon 3,1" in page
    figures = json.loads((tmp_path / "a" / "results.json").read_text())
    assert figures["parts"] == {"made-up": {"rows": [[1.0, 3.0]]}}
    assert "Made up" in capsys.readouterr().out
    text = privacy.parser().format_help()
    assert all(f"  {name} " in text for name in privacy.PARTS)
    assert "examples:" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "labels,none"], "parts='none': no such part; allowed: inversion"),
        (["--seeds", "0"], "seeds=0: too few; allowed: 1 or more"),
        (["--steps", "-1"], "steps=-1: too few; allowed: 1 or more"),
        (["--epsilon", "one"], "epsilon='one': allowed: numbers from 0.01 to 1e6"),
        (["--epsilon", "nan"], "epsilon='nan': allowed"),
        (["--epsilon", "1,inf"], "epsilon='1,inf': allowed"),
        (["--out", "/proc/none/x"], "out='/proc/none/x': [Errno 2]"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, said, capsys):
    assert privacy.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
