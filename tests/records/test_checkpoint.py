import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from fedprune import ConfigError, Result, RunConfig, federate
from fedprune.client.host import Host
from fedprune.engines.inline import inline_port
from fedprune.learning.moving_average import Moving
from fedprune.protocol.messages import Aggregate, Failure, Question
from fedprune.protocol.port import Port
from fedprune.records.checkpoint import load_state, save_state
from fedprune.records.folder import (
    check_resumable,
    checkpoint_path,
    fresh_folder,
    read_rows,
    rewind,
)
from fedprune.runtime.files import write_atomically
from fedprune.selection.ladder import AdaptiveState
from fedprune.server.state import State, Traffic
from fedprune.server.watch import Watch
from fedprune.structure.edits import Edit

Tiny = Callable[..., RunConfig]
HouseOf = Callable[[RunConfig], Host]
Same = Callable[[dict[str, Tensor], dict[str, Tensor]], bool]

FULL = State(
    7,
    {"z": torch.tensor([[1e-40, -0.0], [float("inf"), 0.1]]), "a": torch.tensor(3.0)},
    {"z": torch.tensor([[True, False], [False, True]])},
    {3: "abc", 11: "def"},
    Traffic(1, 2**40, 3, 4),
    6,
    (Failure(3, "tune", "z", "NaN or infinite"),),
    9,
    {"loss": 0.1 + 0.2, "correct": 3, "count": 7},
    True,
    {"a": torch.tensor(-0.0), "z": torch.tensor([[1.5, 1e-42], [0.0, 3.0]])},
    (Edit("head", "h.0", (0, 2)),),
    b"\x00a model\xff",
    {11: "ghi"},
    AdaptiveState(0.1 + 0.2, 1e-300, done=True),
    Moving({"z": torch.tensor([[0.5, -1e-42], [0.0, 7.0]]), "a": torch.tensor(0.1)}, 4),
    (frozenset({3, 0, 7}), frozenset({3, 0})),
    ("tune: again",),
    3,
    True,
    {3: 6, 0: 2},
    (0.1 + 0.2, 1e-300),
    {3: 2},
    {5: 9},
    {"loss": 0.3, "count": 7.0},
)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path, same: Same):
    assert len(fields(State)) == 25, "a new field must be in FULL above and in the file"
    save_state(FULL, tmp_path / "deep" / "er" / "state.safetensors")
    seen = load_state(tmp_path / "deep" / "er" / "state.safetensors")
    assert same(seen.weights, FULL.weights)
    assert same(seen.masks, FULL.masks)
    assert torch.signbit(seen.weights["z"][0, 1])
    assert (list(seen.weights), list(seen.masks)) == (["z", "a"], ["z"]), "in the same order"
    assert seen.early is not None
    assert FULL.early is not None
    assert same(seen.early, FULL.early)
    assert list(seen.early) == ["a", "z"]
    assert seen.moving is not None
    assert FULL.moving is not None
    assert same(seen.moving.weights, FULL.moving.weights)
    assert (list(seen.moving.weights), seen.moving.rounds) == (["z", "a"], 4)
    empty: dict[str, Any] = {"weights": {}, "masks": {}, "early": None, "moving": None}
    assert replace(seen, **empty) == replace(FULL, **empty)


def test_a_first_state_comes_back_too(tmp_path: Path):
    first = State(0, {"a": torch.zeros(2)}, {}, {})
    save_state(first, tmp_path / "state")
    seen = load_state(tmp_path / "state")
    assert (seen.round, seen.known, seen.dense_at_pruning, seen.owed) == (0, {}, None, False)
    assert (seen.early, seen.pace, seen.moving) == (None, None, None)


def test_a_missing_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=f"resume={tmp_path / 'none'}: no checkpoint"):
        load_state(tmp_path / "none")


def test_a_file_is_the_old_one_or_the_new_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def killed(_descriptor: int) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


class Killed(Exception):
    """Stands for the power cut."""


def killed_after(round_: int, arm: str) -> Watch:
    """Ends a run right after the row of a round was kept."""

    def row(row: dict[str, Any], _seconds: float, _state: State) -> None:
        if (row["arm"], row["round"]) == (arm, round_):
            raise Killed

    return Watch(row=row)


def rows_in(folder: Path) -> str:
    return (folder / "rounds.jsonl").read_text()


def broken(config: RunConfig, host: Host, folder: Path, watch: Watch) -> None:
    with pytest.raises(Killed):
        federate(config, inline_port(host), folder=folder, watch=watch)


def resumed(config: RunConfig, host: Host, folder: Path) -> Result:
    return federate(config, inline_port(host), folder=folder, resume=True)


@pytest.fixture(scope="module", autouse=True)
def without_pages() -> Any:
    """The page and its plots take longer than the runs; other tests look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedprune.report.page.write_report", lambda _folder: None)
        yield


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, house_of: HouseOf
) -> tuple[RunConfig, Host, Path]:
    """A run with baselines that nothing disturbed."""
    config = tiny(baselines=("dense", "random"))
    folder = tmp_path_factory.mktemp("whole") / "run"
    federate(config, inline_port(house_of(config)), folder=folder)
    return config, house_of(config), folder


SAME_FILES = ["rounds.jsonl", "config.toml", "mask", "mask.sha256", "model.fedprune"]
SAME_FILES += ["model/model.safetensors", "model/fedprune.json"]


def assert_as_unbroken(folder: Path, whole: Path) -> None:
    for name in SAME_FILES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, whole))
    for key in theirs.keys() - {"seconds", "command", "resume"}:
        assert ours[key] == theirs[key], key
    assert len(read_rows(folder / "timings.jsonl")) == len(read_rows(folder / "rounds.jsonl"))


MOMENTS = [(arm, round_) for arm in ("pruned", "dense", "random") for round_ in range(1, 6)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("arm", "round_"), MOMENTS)
def test_a_run_killed_after_any_round_ends_as_an_unbroken_one(
    arm: str, round_: int, unbroken: tuple[RunConfig, Host, Path], tmp_path: Path
):
    config, host, whole = unbroken
    folder = tmp_path / "run"
    broken(config, host, folder, killed_after(round_, arm))
    assert rows_in(whole).startswith(rows_in(folder))
    assert len(rows_in(folder)) < len(rows_in(whole)) or (arm, round_) == ("random", 5)
    resumed(config, host, folder)
    assert_as_unbroken(folder, whole)


def test_a_run_killed_many_times_ends_as_an_unbroken_one(
    unbroken: tuple[RunConfig, Host, Path], tmp_path: Path
):
    config, host, whole = unbroken
    folder = tmp_path / "run"
    broken(config, host, folder, killed_after(2, "pruned"))
    for arm, round_ in [("pruned", 3), ("dense", 2), ("dense", 5), ("random", 1), ("random", 4)]:
        with pytest.raises(Killed):
            federate(
                config,
                inline_port(host),
                folder=folder,
                resume=True,
                watch=killed_after(round_, arm),
            )
    resumed(config, host, folder)
    assert_as_unbroken(folder, whole)


def failing_port(host: Host, kind: str, round_: int) -> Port:
    """Kills the run in the middle of a round."""
    port = inline_port(host)

    def ask(question: Question, partitions: Any) -> Aggregate:
        if (question.kind, question.round) == (kind, round_):
            raise Killed
        return port.ask(question, partitions)

    return replace(port, ask=ask)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["tune", "score", "evaluate"])
def test_a_run_killed_within_a_round_plays_that_round_again(
    kind: str, unbroken: tuple[RunConfig, Host, Path], tmp_path: Path
):
    config, host, whole = unbroken
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        federate(config, failing_port(host, kind, 3), folder=folder)
    assert len(read_rows(folder / "rounds.jsonl")) == 2
    resumed(config, host, folder)
    assert_as_unbroken(folder, whole)


def test_a_run_killed_in_its_first_round_begins_again(
    unbroken: tuple[RunConfig, Host, Path], tmp_path: Path
):
    config, host, whole = unbroken
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        federate(config, failing_port(host, "tune", 1), folder=folder)
    resumed(config, host, folder)
    assert_as_unbroken(folder, whole)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cut", [1, 40, 700])
@pytest.mark.parametrize("name", ["rounds.jsonl", "timings.jsonl"])
def test_a_line_half_written_is_cut_off(
    name: str, cut: int, unbroken: tuple[RunConfig, Host, Path], tmp_path: Path
):
    config, host, whole = unbroken
    folder = tmp_path / "run"
    broken(config, host, folder, killed_after(3, "pruned"))
    lines = rows_in(whole).splitlines(keepends=True)
    with (folder / name).open("a") as file:
        file.write(lines[3][:cut])
    resumed(config, host, folder)
    assert_as_unbroken(folder, whole)


def test_rows_past_the_checkpoint_are_cut_off(
    unbroken: tuple[RunConfig, Host, Path], tmp_path: Path
):
    """The row of round 4 was written, its checkpoint was not."""
    config, host, whole = unbroken
    folder = tmp_path / "run"
    broken(config, host, folder, killed_after(3, "pruned"))
    ahead = rows_in(whole).splitlines(keepends=True)[3]
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(ahead)
    resumed(config, host, folder)
    assert_as_unbroken(folder, whole)


def test_a_checkpoint_half_written_is_no_checkpoint(
    unbroken: tuple[RunConfig, Host, Path], tmp_path: Path
):
    config, host, whole = unbroken
    folder = tmp_path / "run"
    broken(config, host, folder, killed_after(3, "pruned"))
    path = checkpoint_path(folder, "pruned")
    path.with_suffix(path.suffix + ".new").write_bytes(path.read_bytes()[:500])
    resumed(config, host, folder)
    assert_as_unbroken(folder, whole)


def test_a_finished_run_resumed_is_as_it_was(
    unbroken: tuple[RunConfig, Host, Path], tmp_path: Path
):
    config, host, whole = unbroken
    folder = shutil.copytree(whole, tmp_path / "run")
    asked: list[str] = []
    port = inline_port(host)

    def ask(question: Question, partitions: Any) -> Aggregate:
        asked.append(question.kind)
        return port.ask(question, partitions)

    federate(config, replace(port, ask=ask), folder=folder, resume=True)
    assert asked == ["describe"], "nothing is trained or measured again"
    assert_as_unbroken(folder, whole)


def test_a_failure_and_an_owed_pruning_survive_a_kill(
    tiny: Tiny, house_of: HouseOf, spy: Any, tmp_path: Path
):
    config = tiny(cohort=5, min_clients=3, schedule="one-shot", end=3)
    host = house_of(config)

    def absent(question: Question, partition: int) -> bool:
        return question.kind == "score" and question.round == 3 and partition > 1

    def port() -> Port:
        made: Port = spy(inline_port(host), absent).port
        return made

    whole, folder = tmp_path / "whole", tmp_path / "run"
    federate(config, port(), folder=whole)
    with pytest.raises(Killed):
        federate(config, port(), folder=folder, watch=killed_after(3, "pruned"))
    assert load_state(checkpoint_path(folder, "pruned")).owed
    federate(config, port(), folder=folder, resume=True)
    assert_as_unbroken(folder, whole)
    assert read_rows(folder / "rounds.jsonl")[3]["removed"] > 0


def test_rewinding_gives_the_rows_and_the_states(unbroken: tuple[RunConfig, Host, Path]):
    _, _, whole = unbroken
    known = check_resumable(whole)
    rows, states = rewind(whole, ["pruned", "dense", "random", "warm", "never"], known)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5] * 3
    assert {arm: state.round for arm, state in states.items()} == {
        "pruned": 5,
        "dense": 5,
        "random": 5,
        "warm": 2,
    }


def test_a_folder_with_a_run_is_not_written_over(run_folder: Path, tiny: Tiny, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"out='{run_folder}': holds a run already; allowed: "):
        fresh_folder(tiny(out=str(run_folder)))
    assert fresh_folder(tiny(out=str(tmp_path / "new"))) == tmp_path / "new"
    assert fresh_folder(tiny()).parent == Path("runs")


PATHS = [
    {"rewind": 1},
    {"schedule": "regrow"},
    {"masks": "union"},
    {"score_during": "tune"},
    {"combine": "median", "score_wire": "log8"},
    {"schedule": "adaptive", "tolerance": 0.0, "moving": "ema"},
    {"schedule": "adaptive", "adaptive": "layer", "blend": "layer", "moving": "swa"},
]


@pytest.mark.slow
@pytest.mark.parametrize("keys", PATHS, ids=str)
def test_a_run_of_any_kind_killed_after_any_round_ends_as_an_unbroken_one(
    keys: dict[str, Any], tiny: Tiny, house_of: HouseOf, tmp_path: Path
):
    config = tiny(**keys, local_steps=1, clients=3, hosts=2)
    host = house_of(config)
    federate(config, inline_port(host), folder=tmp_path / "whole")
    for round_ in (1, 2, 3, 4):
        folder = tmp_path / str(round_)
        broken(config, host, folder, killed_after(round_, "pruned"))
        early = load_state(checkpoint_path(folder, "pruned")).early
        assert (early is None) == ("rewind" not in keys)
        resumed(config, host, folder)
        assert_as_unbroken(folder, tmp_path / "whole")


def test_weights_to_go_back_to_are_those_of_the_first_run(
    tiny: Tiny, house_of: HouseOf, same: Same, tmp_path: Path
):
    config = tiny(rewind=1, local_steps=1)
    states: dict[int, State] = {}
    watch = Watch(row=lambda row, _seconds, state: states.update({row["round"]: state}))
    federate(config, inline_port(house_of(config)), folder=tmp_path, watch=watch)
    saved = load_state(checkpoint_path(tmp_path, "pruned")).early
    assert saved is not None
    assert same(saved, states[1].weights)
