"""Inline equals Ray, whatever the number of workers: the same bits in every row and weight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The default task, unequal shards, a partial cohort; pruned from round two on.
OPTIONS = "--clients 7 --cohort 4 --hosts 3 --rounds 3 --warmup 1 --local-steps 4 --seed 3"


def run(folder: Path, *arguments: str) -> tuple[str, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "simulations/run.py", *OPTIONS.split(), *arguments, "--out", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "rounds.jsonl").read_text(), json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object]]:
    return run(tmp_path_factory.mktemp("inline") / "run", "--engine", "inline")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_inline_equals_ray_bit_for_bit(
    inline: tuple[str, dict[str, object]], workers: str, tmp_path: Path
) -> None:
    rows, summary = run(tmp_path / "run", "--workers", workers)
    assert rows == inline[0]
    for key in ("weights_digest", "mask_digest", "quality", "bytes_up", "bytes_down"):
        assert summary[key] == inline[1][key]


@pytest.mark.slow
def test_the_run_compared_is_partial_unequal_and_pruned(
    inline: tuple[str, dict[str, object]],
) -> None:
    sizes = inline[1]["shard_sizes"]
    assert isinstance(sizes, list)
    assert len(set(sizes)) == len(sizes) == 7
    rows = [json.loads(line) for line in inline[0].splitlines()]
    assert all(len(row["cohort"]) == 4 for row in rows)
    assert rows[-1]["removed"] > rows[0]["removed"] == 0


NEW = [
    "--distil 0.5 --l1 0.001 --lr-rewind --reconstruct outputs",
    "--score grasp --combine median --score-wire log8",
    "--masks union --score wanda --precision bf16",
    "--schedule adaptive --tolerance 0.5 --blend layer --blend-grid 0.5,1,1.5 --moving ema",
]


@pytest.mark.slow
@pytest.mark.parametrize("options", NEW)
def test_inline_equals_ray_for_answers_of_other_forms(options: str, tmp_path: Path) -> None:
    """Two questions with something sent along, values one by one, masks of the clients' own."""
    given = ["--task", "digits", *options.split()]
    given += ["--warmup", "0"] if "grasp" in options else []
    rows, summary = run(tmp_path / "here", *given, "--engine", "inline")
    there, other = run(tmp_path / "there", *given, "--workers", "2")
    assert rows == there
    assert summary["weights_digest"] == other["weights_digest"]
    assert json.loads(rows.splitlines()[-1])["removed"] > 0
