"""A plug-in for tests: scores whose clients remember something of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from fedprune import SCORES as BUILT_IN
from fedprune import Score
from fedprune.scores.score import Ask, Evidence, Probe

MARK = 0.7071067


def moving(probe: Probe) -> dict[str, Tensor]:
    """The client's own running mean of its gradient statistics; beside it, a mark of its own."""
    (ask,) = BUILT_IN["taylor"].asks
    before = probe.remembered
    now = {n: s + 0.5 * before.get(n, torch.zeros(())) for n, s in ask.collect(probe).items()}
    probe.remember({**now, "mark": torch.full((64,), MARK), "times": before_and_one(before)})
    return now


def before_and_one(before: dict[str, Tensor]) -> Tensor:
    return before.get("times", torch.zeros((), dtype=torch.int64)) + 1


def recalled(probe: Probe) -> dict[str, Tensor]:
    """How often this client's answer has counted; it keeps nothing yet."""
    n = float(before_and_one(probe.remembered)) - 1
    return {name: torch.full(probe.layout.shapes[name], n) for name in probe.prunable}


def times(probe: Probe) -> dict[str, Tensor]:
    """How often this client's answer has counted, with this one; under every weight."""
    n = before_and_one(probe.remembered)
    probe.remember({"times": n})
    return {name: torch.full(probe.layout.shapes[name], float(n)) for name in probe.prunable}


def given(evidence: Evidence) -> dict[str, Tensor]:
    del evidence
    return {"zero": torch.zeros(1)}


def early(probe: Probe) -> dict[str, Tensor]:
    probe.remember({})
    return times(probe)


def sizes(evidence: Evidence) -> dict[str, Tensor]:
    return {n: w.abs() for n, w in evidence.weights.items()}


def kept(evidence: Evidence) -> dict[str, Tensor]:
    return {n: s.abs() for n, s in evidence.sums.items()}


SCORES = {
    "moving": Score("|Σ moving w·g|", "tests", kept, (Ask(moving),), remembers=True),
    "times": Score(
        "|w|, asked twice", "tests", sizes, (Ask(recalled), Ask(times, given=given)), remembers=True
    ),
    "early": Score("|w|", "tests", sizes, (Ask(early), Ask(times, given=given)), remembers=True),
    "silent": Score("|w|", "tests", sizes, (Ask(times),)),
}
