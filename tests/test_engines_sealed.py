"""Inline equals Ray, further cases: a file of their own, so that two processes share the wait."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_engines import run

NEW = [
    "--reduce dead,merge,share,low-rank --rank-budget 0.5 --reduce-round 3",
    "--unit channel --sparsity 0.3 --shrink every --blend layer --moving ema --uplink int8",
    "--secure secagg --masks union --secure-bits 32",
    "--model mlp --secure secagg --dp client --dp-noise 1 --no-agreement --noise-source seeded",
]


@pytest.mark.slow
@pytest.mark.parametrize("options", NEW)
def test_inline_equals_ray_for_other_models_and_sums(options: str, tmp_path: Path) -> None:
    """Models that change their shape on the way, secure sums, shared noise."""
    given = ["--task", "digits", *options.split()]
    rows, summary = run(tmp_path / "here", *given, "--engine", "inline")
    there, other = run(tmp_path / "there", *given, "--workers", "2")
    assert rows == there
    assert summary["weights_digest"] == other["weights_digest"]
    assert json.loads(rows.splitlines()[-1])["removed"] > 0
