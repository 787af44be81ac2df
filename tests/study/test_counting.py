"""What of several runs counts, what is called best, and what all of them reach."""

from pathlib import Path

import pytest

from fedprune.report.reading import Run
from fedprune.study.beside import after_pruning, reaching_table
from fedprune.study.design import Factors
from fedprune.study.outcomes import StudyOutcome, lacking
from fedprune.study.page import write_study
from fedprune.study.pictures import Collected, rank_pictures
from fedprune.study.tables import panels_of

FACTORS = Factors(("score", "seed"), "score", "")


def outcome(labels, value, metric="accuracy", rows=(), config=None, **said):
    """A run with a test value."""
    summary = {"metric": metric, "task": "t", "quality": {"final": {metric: value}}, **said}
    summary = {"sparsity_asked": 0.8, **summary}
    run = Run({"method": "global", **(config or {})}, list(rows), {}, summary)
    return StudyOutcome("-".join(labels.values()), labels, Path(), run, said.get("failed", ""))


def at(score, seed, value, **more):
    return outcome({"score": score, "seed": str(seed)}, value, **more)


@pytest.mark.parametrize("why", [{"failed": "nobody answered"}, {"reached": False}])
def test_a_run_that_was_not_pruned_as_asked_is_in_no_mean(why, tmp_path):
    its = [at("a", 0, 0.5), at("a", 1, 0.7), at("b", 0, 0.9, **why), at("b", 1, 0.9, **why)]
    (panel,) = panels_of(its, FACTORS)
    assert panel.rows == ("a", "b")
    assert [panel.cells[row, ""].count for row in "ab"] == [2, 0]
    assert panel.best("") == ""
    page = write_study(tmp_path, Collected("x", FACTORS, its, "x")).read_text()
    assert "2 were not pruned as asked: in no mean, figure or test." in page
    assert "best mean" not in page


def test_means_of_different_seeds_have_no_best(tmp_path):
    its = [at("a", 0, 0.5), at("b", 1, 0.9)]
    (panel,) = panels_of(its, FACTORS)
    assert panel.best("") == ""
    page = write_study(tmp_path, Collected("x", FACTORS, its, "x")).read_text()
    assert "Means are of different seeds: none is called best." in page
    (panel,) = panels_of([*its, at("a", 1, 0.6), at("b", 0, 0.4)], FACTORS)
    assert panel.best("") == "b"


def test_every_metric_has_a_panel_and_all_are_ranked(tmp_path):
    both = Factors(("task", "seed"), "task", "")
    its = [
        outcome({"task": "d", "seed": "0"}, 0.5),
        outcome({"task": "t", "seed": "0"}, 60.0, "perplexity"),
    ]
    assert [(p.metric, p.rows) for p in panels_of(its, both)] == [
        ("accuracy", ("d",)),
        ("perplexity", ("t",)),
    ]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "quality.tex").write_text("of an earlier study")
    write_study(tmp_path, Collected("x", both, its, "x"))
    assert {p.stem for p in (tmp_path / "tables").iterdir()} == {"accuracy", "perplexity"}
    whole = Factors(("score", "task", "seed"), "score", "")
    its = [
        outcome({"score": score, "task": task, "seed": "0"}, sign * value, metric)
        for score, value in (("a", 3), ("b", 2), ("c", 1))
        for task, metric, sign in (("d", "accuracy", 0.1), ("t", "perplexity", -1))
    ]
    (picture,) = rank_pictures(Collected("x", whole, its, "x"))
    assert "Over 2 blocks a has the best mean rank, 1.00" in picture.finding


def rows_of(*rounds):
    keys = ("round", "removed", "accuracy", "bytes_up", "bytes_down", "clock")
    return [{"arm": "pruned", **dict(zip(keys, row, strict=True))} for row in rounds]


FAST = rows_of((1, 0, 0.9, 1e6, 1e6, 1.0), (2, 5, 0.4, 2e6, 2e6, 3.0), (3, 5, 0.6, 3e6, 3e6, 4.0))
SLOW = rows_of((1, 0, 0.9, 1e6, 0, 1.0), (2, 5, 0.3, 2e6, 0, 5.0), (3, 5, 0.5, 3e6, 0, 9.0))


def test_all_are_compared_where_they_are_as_good_as_each_of_them_gets():
    """Which is 0.5: what was reached before weights went is no quality of the pruned model."""
    its = [at("a", 0, 0.6, rows=FAST), at("b", 0, 0.5, rows=SLOW)]
    table = reaching_table(its, FACTORS)
    heads = ["score", "level on validation", "rounds", "MB", "simulated seconds"]
    level = "50.0\u00a0%"
    rows = [["a", level, "3.00", "6.00", "4.00"], ["b", level, "3.00", "3.00", "9.00"]]
    assert (table.columns, table.rows) == (heads, rows)
    earlier = [*FAST[:1], {**FAST[1], "accuracy": 0.55}, FAST[2]]
    its[0] = at("a", 0, 0.6, rows=[{**row, "clock": None} for row in earlier])
    its[1] = at("b", 0, 0.5, rows=[{**row, "clock": None} for row in SLOW])
    table = reaching_table(its, FACTORS)
    assert table.columns == heads[:-1]
    assert table.rows[0] == ["a", level, "2.00", "4.00"]
    assert not reaching_table(its[:1], FACTORS).rows
    assert [step.round for step in after_pruning(its[1].run)] == [2, 3]


def test_what_a_comparison_lacks():
    its = [at(s, i, 0.5, config={"score": s}) for s in ("random", "magnitude") for i in range(3)]
    assert lacking(its) == ["several sparsities"]
    assert lacking([*its, at("x", 0, 0.5, sparsity_asked=0.5)]) == []
    assert lacking(its[:1]) == ["several sparsities", "three seeds", "magnitude"]
    assert lacking([at("dense", 0, 0.5, sparsity_asked=0.0)]) == []
