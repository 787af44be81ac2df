import csv
import re
from statistics import stdev

import pytest

from fedprune import federate
from fedprune.commands.compare import compared_labels
from fedprune.commands.main import main
from fedprune.commands.seeds import seeds_in
from fedprune.engines.inline import inline_port
from fedprune.options.refusal import ConfigError
from fedprune.study.design import design_of
from fedprune.study.outcomes import outcome_of
from fedprune.study.page import write_study
from fedprune.study.pictures import Collected
from fedprune.study.playing import cell_folder
from fedprune.study.tables import escaped
from tests.runs import TINY, house_of

GRID = {"score": ["random", "magnitude", "wanda"], "sparsity": [0.5, 0.9], "seed": [0, 1]}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study's folder in which all runs but the last are there."""
    out = tmp_path_factory.mktemp("study")
    base = {k: v for k, v in TINY.items() if k not in ("seed", "sparsity", "engine")}
    base |= {"rounds": 2, "warmup": 0, "end": 2, "local_steps": 1}
    design = design_of({"base": {**base, "model": "mlp"}, "grid": GRID}, "<i>a & b</i>")
    for cell in design.cells[:-1]:
        federate(cell.config, inline_port(house_of(cell.config)), folder=cell_folder(cell, out))
    outcomes = [outcome_of(cell, out) for cell in design.cells]
    collected = Collected(design.title, design.factors, outcomes, "fedprune study x --out y")
    return out, collected, write_study(out, collected).read_bytes()


@pytest.mark.slow
def test_every_run_is_a_row_with_what_its_summary_says(study):
    out, collected, _ = study
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [tuple(r[k] for k in GRID) for r in rows] == [
        (s, str(p), str(i)) for s in GRID["score"] for p in GRID["sparsity"] for i in GRID["seed"]
    ]
    for row, one in zip(rows, collected.outcomes, strict=True):
        assert row["config_digest"] == one.digest
        if one.run is None:
            assert (row["status"], row["test_accuracy"]) == ("not played", "")
            continue
        final = one.run.summary["quality"]["final"]
        assert float(row["test_accuracy"]) == final["accuracy"]
        assert float(row["sparsity_reached"]) == one.run.summary["sparsity"]
        assert int(row["bytes_up"]) == one.run.summary["bytes_up"]
        assert row["weights_digest"] == one.run.summary["weights_digest"]
    assert [r["status"] for r in rows] == ["done"] * 11 + ["not played"]


def test_means_are_those_of_the_rows(study):
    out, _, page = study
    rows = [r for r in csv.DictReader((out / "results.csv").open()) if r["test_accuracy"]]
    text = page.decode().replace("\u00a0", " ")
    latex = (out / "tables" / "quality.tex").read_text()
    for score in GRID["score"]:
        for sparsity in map(str, GRID["sparsity"]):
            values = [
                100 * float(r["test_accuracy"])
                for r in rows
                if (r["score"], r["sparsity"]) == (score, sparsity)
            ]
            mean = sum(values) / len(values)
            if len(values) == 1:
                assert f"{mean:#.3g}".rstrip(".") + " % of 1<" in text
                continue
            deviation = stdev(values)
            places = max(0, 1 - int(f"{deviation:e}".partition("e")[2]))
            assert f">{mean:.{places}f} % ({deviation:.{places}f})<" in text
            assert rf"{mean:.{places}f}" in latex
    assert "11 of 12 runs have a result" in text


@pytest.mark.slow
def test_the_page_needs_nothing_and_escapes_what_others_wrote(study):
    out, collected, page = study
    text = page.decode()
    assert text.count("<script") == 1
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "<i>a" not in text
    assert "&lt;i&gt;a &amp; b" in text
    assert write_study(out, collected).read_bytes() == page
    assert "The picture of FLOPs of kept weights, of dense is the same." in text
    drawn = {p.stem for p in (out / "plots").glob("*.png")}
    assert drawn >= {"density-0", "bytes-0", "disk-0", "ranks", "densities", "agreement"}
    for name in drawn:
        assert f'id="{name}"' in text


@pytest.mark.slow
def test_runs_that_are_there_are_compared(study, tmp_path, capsys):
    _, collected, _ = study
    folders = [str(o.folder) for o in collected.outcomes[:8]]
    assert main(["compare", *folders, "--out", str(tmp_path / "c")]) == 0
    rows = list(csv.DictReader((tmp_path / "c" / "results.csv").open()))
    assert [r["configuration"] for r in rows] == ["score=random"] * 4 + ["score=magnitude"] * 4
    assert {(r["sparsity"], r["seed"]) for r in rows} == {
        (p, s) for p in ("0.5", "0.9") for s in "01"
    }
    assert main(["compare", *folders, "--by", "lr", "--out", str(tmp_path / "d")]) == 2
    assert main(["compare", folders[0], folders[0], "--out", str(tmp_path / "d")]) == 2
    assert main(["compare", folders[0], str(tmp_path), "--out", str(tmp_path / "d")]) == 2
    assert main(["compare", *folders, "--out", folders[0]]) == 2
    assert not (collected.outcomes[0].folder / "study.html").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("allowed: " in line for line in lines)
    assert not (tmp_path / "d").exists()


def test_labels_are_the_keys_that_differ():
    runs = [({"score": "a", "lr": 0.1}, {"score": "a", "lr": 0.1, "seed": 0}),
            ({"score": "b", "seed": 1}, {"score": "b", "lr": 0.2, "seed": 1})]  # fmt: skip
    assert compared_labels(runs) == [
        {"seed": "0", "configuration": "score=a, lr=0.1"},
        {"seed": "1", "configuration": "score=b, lr=0.2"},
    ]
    assert compared_labels(runs, "lr")[1] == {"score": "b", "lr": "0.2", "seed": "1"}
    with pytest.raises(ConfigError, match="do not differ in it"):
        compared_labels(runs, "clients")
    with pytest.raises(ConfigError, match="differ in nothing"):
        compared_labels(runs[:1] * 2)


def test_seeds_as_they_are_written():
    written = {"0-4": [0, 1, 2, 3, 4], "7": [7], "0,3,7": [0, 3, 7], "1-2,5": [1, 2, 5]}
    assert {text: seeds_in(text) for text in written} == written
    for text in ("", "a", "3-", "-3", "4-1", "1,1", "0-9999999999", "1.5", "0-2-4"):
        with pytest.raises(ConfigError, match="allowed: "):
            seeds_in(text)


def test_latex_reads_no_character_as_its_own():
    told = r"50\% \& a\_b \{x\} \textasciitilde{}\textbackslash{}\textasciicircum{}\$\#"
    assert escaped("50% & a_b {x} ~\\^$#") == told


def test_a_run_that_cannot_be_read_is_a_row_with_the_reason(tmp_path, monkeypatch):
    def damaged(_folder):
        raise ValueError("privacy.jsonl: line 3 is damaged")

    monkeypatch.setattr("fedprune.study.outcomes.is_there", lambda _: True)
    monkeypatch.setattr("fedprune.study.outcomes.read_run", damaged)
    design = design_of({"base": {"task": "digits"}, "grid": {"seed": [0, 1]}}, "x")
    outcome = outcome_of(design.cells[0], tmp_path)
    assert (outcome.run, outcome.reason) == (None, "privacy.jsonl: line 3 is damaged")
