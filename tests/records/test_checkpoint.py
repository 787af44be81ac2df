import itertools
import json
import os
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from fedprune import ConfigError, RunConfig, federate
from fedprune.engines.inline import inline_port
from fedprune.methods.catalog import METHODS, RIDERS, memories_of
from fedprune.protocol.messages import Question
from fedprune.records.checkpoint import load_state, save_state
from fedprune.records.folder import (
    check_resumable,
    checkpoint_path,
    fresh_folder,
    read_rows,
    rewind,
)
from fedprune.runtime.files import write_atomically
from fedprune.server.state import Model, State
from fedprune.server.watch import Watch
from fedprune.structure.edits import Edits
from tests.filled import TINY, alike, filled
from tests.runs import Killed, Spy, house_of, killed_after, same, tiny

KINDS = memories_of("")
FULL = replace(
    filled(State, TINY),
    model=Model(TINY, {"z": torch.tensor([[True, False], [False, True]])}, filled(Edits)),
    memories={name: filled(kind) for name, kind in reversed(KINDS.items())},
)


def test_a_state_and_every_memory_come_back_bit_for_bit(tmp_path):
    save_state(FULL, tmp_path / "deep" / "er" / "state.safetensors")
    seen = load_state(tmp_path / "deep" / "er" / "state.safetensors", KINDS)
    assert alike(seen, FULL)
    assert seen.memories.keys() == METHODS.keys() | RIDERS.keys()
    assert all(vars(memory) for n, memory in seen.memories.items() if fields(KINDS[n]))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"resume={tmp_path / 'none'}: no checkpoint"):
        load_state(tmp_path / "none", KINDS)


def test_a_file_is_the_old_one_or_the_new_one_whole(tmp_path, monkeypatch):
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
    (tmp_path / "other").write_text("mine")
    (tmp_path / "file.new").symlink_to(tmp_path / "other")
    write_atomically(path, b"ours")
    assert [(tmp_path / name).read_text() for name in ("other", "file")] == ["mine", "ours"]


@dataclass(frozen=True)
class Runs:
    """A run that nothing disturbed, and the folder of one that is."""

    config: RunConfig
    whole: Path
    folder: Path

    def killed(self, watch: Watch, **more: Any) -> None:
        port = inline_port(house_of(self.config))
        with pytest.raises(Killed):
            federate(self.config, port, folder=self.folder, watch=watch, **more)

    def cut(self, round_: int, arm: str = "pruned") -> None:
        """What a power cut right after the row of a round would have left."""
        shutil.copytree(after(self.whole, arm, round_), self.folder)

    def ends_as_unbroken(self) -> list[str]:
        """The kinds of questions that it was asked until then."""
        spy = Spy(inline_port(house_of(self.config)))
        federate(self.config, spy.port, folder=self.folder, resume=True)
        assert_as_unbroken(self.folder, self.whole)
        return [question.kind for question, _, _ in spy.asked]

    def rows(self) -> str:
        return (self.folder / "rounds.jsonl").read_text()


def after(whole: Path, arm: str, round_: int) -> Path:
    return whole.parent / f"{whole.name} {arm} {round_}"


def undisturbed(config: RunConfig, folder: Path) -> Runs:
    """A run, and beside its folder what that held after each round."""

    def row(row: dict[str, Any], *_: Any) -> None:
        shutil.copytree(folder, after(folder, row["arm"], row["round"]))

    federate(config, inline_port(house_of(config)), folder=folder, watch=Watch(row=row))
    return Runs(config, folder, folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Runs:
    config = tiny(model="mlp", baselines=("dense", "random"))
    return undisturbed(config, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def runs(unbroken, tmp_path) -> Runs:
    return replace(unbroken, folder=tmp_path / "run")


SAME_FILES = ["rounds.jsonl", "config.toml", "mask", "mask.sha256", "model.fedprune"]
SAME_FILES += ["model/model.safetensors", "model/fedprune.json"]


def assert_as_unbroken(folder: Path, whole: Path) -> None:
    for name in SAME_FILES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, whole))
    for key in theirs.keys() - {"seconds", "command", "resume", "provenance"}:
        assert ours[key] == theirs[key], key
    assert len(read_rows(folder / "timings.jsonl")) == len(read_rows(folder / "rounds.jsonl"))


MOMENTS = [(arm, round_) for arm in ("pruned", "dense", "random") for round_ in range(1, 6)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("arm", "round_"), MOMENTS)
def test_a_run_killed_after_any_round_ends_as_an_unbroken_one(arm, round_, runs):
    runs.cut(round_, arm)
    whole = (runs.whole / "rounds.jsonl").read_text()
    assert whole.startswith(runs.rows())
    assert len(runs.rows()) < len(whole) or (arm, round_) == ("random", 5)
    runs.ends_as_unbroken()


@pytest.mark.slow
def test_a_run_killed_many_times_ends_as_an_unbroken_one(runs):
    runs.killed(killed_after(2))
    for arm, round_ in [("pruned", 3), ("dense", 2), ("dense", 5), ("random", 1), ("random", 4)]:
        runs.killed(killed_after(round_, arm), resume=True)
    runs.ends_as_unbroken()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kind", "round_"), [("tune", 1), ("tune", 3), ("score", 3), ("evaluate", 3)]
)
def test_a_run_killed_within_a_round_plays_that_round_again(kind, round_, runs):
    def phase(_arm: str, question: Question, _count: int) -> None:
        if (question.kind, question.round) == (kind, round_):
            raise Killed

    runs.killed(Watch(phase=phase))
    assert round_ == 1 or len(runs.rows().splitlines()) == 2
    runs.ends_as_unbroken()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "cut"),
    [("rounds.jsonl", None), *itertools.product(["rounds.jsonl", "timings.jsonl"], [1, 40, 700])],
)
def test_what_was_half_written_when_a_run_was_killed_is_cut_off(name, cut, runs):
    """A part of a row, or a row past the checkpoint; and half a checkpoint beside it."""
    runs.cut(3)
    path = checkpoint_path(runs.folder, "pruned")
    path.with_suffix(path.suffix + ".new").write_bytes(path.read_bytes()[:500])
    row = (runs.whole / "rounds.jsonl").read_text().splitlines(True)[3]
    with (runs.folder / name).open("a") as file:
        file.write(row[:cut])
    runs.ends_as_unbroken()


def test_a_finished_run_resumed_is_as_it_was(runs):
    shutil.copytree(runs.whole, runs.folder)
    assert runs.ends_as_unbroken() == ["describe"], "nothing is trained or measured again"


@pytest.mark.slow
def test_a_failure_and_a_pending_pruning_survive_a_kill(tmp_path):
    config = tiny(cohort=5, min_clients=3, schedule="one-shot", end=3)

    def absent(question: Question, partition: int) -> bool:
        return question.kind == "score" and question.round == 3 and partition > 1

    port = Spy(inline_port(house_of(config)), absent).port
    whole, folder = tmp_path / "whole", tmp_path / "run"
    federate(config, port, folder=whole)
    with pytest.raises(Killed):
        federate(config, port, folder=folder, watch=killed_after(3, "pruned"))
    assert load_state(checkpoint_path(folder, "pruned"), KINDS).pending
    federate(config, port, folder=folder, resume=True)
    assert_as_unbroken(folder, whole)
    assert read_rows(folder / "rounds.jsonl")[3]["removed"] > 0


def test_rewinding_gives_the_rows_and_the_states(unbroken):
    known = check_resumable(unbroken.whole)
    arms = ["pruned", "dense", "random", "warm", "never"]
    rows, states = rewind(unbroken.whole, arms, known, KINDS)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5] * 3
    ends = {"pruned": 5, "dense": 5, "random": 5, "warm": 2}
    assert {arm: state.round for arm, state in states.items()} == ends


def test_a_folder_with_a_run_is_not_written_over(run_folder, tmp_path):
    with pytest.raises(ConfigError, match=f"out='{run_folder}': holds a run already; allowed: "):
        fresh_folder(tiny(out=str(run_folder)))
    assert fresh_folder(tiny(out=str(tmp_path / "new"))) == tmp_path / "new"
    assert fresh_folder(tiny()).parent == Path("runs")


PATHS = [  # of methods, and of what grows back or is scored while tuning, the gallery has runs
    {"rewind": 1, "combine": "median", "score_wire": "log8"},
    {"masks": "union"},
    {"schedule": "adaptive", "tolerance": 0.0, "moving": "ema"},
    {"schedule": "adaptive", "adaptive": "layer", "blend": "layer", "moving": "swa"},
]


@pytest.mark.slow
@pytest.mark.parametrize("keys", PATHS, ids=str)
def test_a_run_of_any_kind_killed_around_its_first_pruning_ends_as_an_unbroken_one(keys, tmp_path):
    fast = {"model": "mlp", "local_steps": 1, "clients": 3, "hosts": 2}
    whole = undisturbed(tiny(**keys, **fast), tmp_path / "whole")
    for round_ in (2, 3):
        runs = replace(whole, folder=tmp_path / str(round_))
        runs.cut(round_)
        state, first = (
            load_state(checkpoint_path(folder, "pruned"), KINDS)
            for folder in (runs.folder, after(runs.whole, "pruned", 1))
        )
        early = state.memories.get("rewind")
        assert (early is None) == ("rewind" not in keys)
        assert early is None or same(early.early, first.weights), "those of the first round"
        runs.ends_as_unbroken()
