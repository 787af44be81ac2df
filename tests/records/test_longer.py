"""The best round, patience, and more rounds on --resume: against runs that were planned so."""

import pytest

from fedprune import ConfigError, federate
from fedprune.commands.run import main
from fedprune.records.folder import read_rows
from fedprune.records.resumed import resumed_config
from fedprune.report.reading import read_run
from tests.runs import cut_short, played, tiny

MLP = {"model": "mlp", "lr_schedule": "constant", "rounds": 6, "local_steps": 1}
STEEP = {**MLP, "lr": 8.0, "baselines": ("dense",)}


@pytest.mark.parametrize("more", [{}, {"secure": "secagg"}], ids=str)
def test_the_best_round_is_the_lowest_loss_of_the_sparsest_models(more):
    result = played(tiny(**STEEP, save="best") if not more else tiny(**MLP, save="best", lr=8.0))
    rows = [r for r in result.rows if r["arm"] == "pruned"]
    last = max(r["sparsity"] for r in rows)
    want = min((r for r in rows if r["sparsity"] == last), key=lambda r: r["loss"])
    assert result.summary["best_round"] == want["round"]
    assert result.summary["weights_digest"] == want["weights_digest"]


@pytest.mark.slow
def test_an_arm_ends_when_nothing_better_comes_and_resumes_to_the_same(tmp_path):
    config = tiny(**{**MLP, "lr": 8.0, "rounds": 12}, patience=1, save="best")
    whole = played(config)
    ended = whole.summary["ended_early"]
    assert ended < 12
    assert "stopped" not in whole.summary["privacy"]
    cut_short(config, tmp_path / "run", ended - 1)
    again = federate(config, folder=tmp_path / "run", resume=True)
    assert again.rows == whole.rows
    assert again.summary["weights_digest"] == whole.summary["weights_digest"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{"baselines": ("dense",)}, {"error_feedback": True, "uplink": "int8"}], ids=str
)
def test_more_rounds_are_those_of_a_run_that_was_planned_so_long(
    more, tmp_path, monkeypatch, caplog
):
    """Nor does a page on the way read a folder whose summary is that of the first end."""
    monkeypatch.setattr("fedprune.report.live.FIRST_PAGE", 0.0)
    monkeypatch.setattr("fedprune.report.page.write_report", read_run)
    short, long = tiny(**{**MLP, **more, "rounds": 5}), tiny(**{**MLP, **more})
    federate(short, folder=tmp_path)
    config = resumed_config(tmp_path, {"rounds": "6"})
    done, whole = federate(config, folder=tmp_path, resume=True), played(long)
    assert "no page" not in caplog.text
    told = {(r["arm"], r["round"]): r for r in done.rows}
    assert told == {(r["arm"], r["round"]): r for r in whole.rows}
    for key in ("weights_digest", "mask_digest", "quality", "bytes_up", "bytes_evaluation"):
        assert done.summary[key] == whole.summary[key]
    assert resumed_config(tmp_path, {}).rounds == 6
    assert len(read_rows(tmp_path / "rounds.jsonl")) == len(whole.rows)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("planned", "words"),
    [
        ({"end": None}, "end would be 6, and was 4"),
        ({"lr_schedule": "cosine"}, "lr-schedule cosine would fall more slowly"),
        ({"measure_every": 2}, "round 5 was measured as the last one"),
        ({"baselines": ("centralised",)}, "the arm centralised has ended"),
    ],
    ids=str,
)
def test_what_would_have_been_played_otherwise_is_refused(planned, words, tmp_path, capsys):
    keys = {k: v for k, v in {**MLP, "rounds": 5, **planned}.items() if v is not None}
    config = tiny(**keys)
    if "end" in planned:
        config = config.model_copy(update={"end": None})
    federate(config, folder=tmp_path)
    rounds = "8" if "end" in planned else "6"
    assert main(["--resume", str(tmp_path), "--rounds", rounds]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_fewer_rounds_are_refused_and_anyway_is_said(tmp_path):
    federate(tiny(**{**MLP, "lr_schedule": "cosine", "rounds": 5}), folder=tmp_path)
    for rounds, words in (("4", "the run has 5"), ("x", "rounds"), ("0", "rounds")):
        with pytest.raises(ConfigError, match=words):
            resumed_config(tmp_path, {"rounds": rounds})
    config = resumed_config(tmp_path, {"rounds": "6"}, anyway=True)
    done = federate(config, folder=tmp_path, resume=True, anyway=True)
    assert done.rows[-1]["round"] == 6
    assert done.summary["resumed_anyway"] == ["rounds is 6, was 5 when the run began"]
    assert resumed_config(tmp_path, {}).end == config.end
