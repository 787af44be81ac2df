from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedprune.report.board import Board, scalars
from fedprune.report.reading import read_run

pytestmark = pytest.mark.usefixtures("pages")


def write_events(folder, rows):
    board = Board()
    board.open(folder, rows)
    board.ended(None)


def load(folder: Path, arm: str) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard" / arm)).Reload()


def test_every_arm_has_its_scalars(make_run):
    folder = make_run()
    rows = read_run(folder).rows
    write_events(folder, rows)
    pruned = load(folder, "pruned")
    tags = set(pruned.Tags()["scalars"])
    wanted = {"loss", "perplexity", "sparsity", "bytes_up", "bytes_down", "agreement"}
    assert wanted <= tags
    assert not {"round", "arm", "cohort", "mask_digest"} & tags
    told = [event.value for event in pruned.Scalars("loss")]
    assert told == pytest.approx([row["loss"] for row in rows if row["arm"] == "pruned"])
    assert "agreement" not in load(folder, "dense").Tags()["scalars"]


def test_written_again_each_step_is_there_once(make_run):
    folder = make_run(arms=("pruned",))
    rows = read_run(folder).rows
    write_events(folder, rows[:7])
    write_events(folder, rows)
    steps = [event.step for event in load(folder, "pruned").Scalars("loss")]
    assert steps == [row["round"] for row in rows]
    assert len(list((folder / "tensorboard" / "pruned").iterdir())) == 1


def test_an_arm_cannot_leave_the_folder(tmp_path):
    write_events(tmp_path / "run", [{"arm": "../../out", "round": 1, "loss": 1.0}])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_only_finite_numbers_are_scalars():
    row = {"arm": "a", "round": 3, "loss": float("nan"), "lr": 0.5, "removed": 2, "done": True}
    assert scalars({**row, "agreement": None, "cohort": [1]}) == {"lr": 0.5, "removed": 2.0}
