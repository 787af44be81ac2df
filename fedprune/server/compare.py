"""Choices that the clients' validation parts decide: many models near one, measured in a question.

A question names the model as it is and some candidates near it; every client measures all of them,
and what comes back are sums, so a candidate's loss is the pooled one of those who answered. All
candidates of a question are measured by the same clients. The test parts choose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedprune.learning.candidates import Candidate
from fedprune.protocol.port import Ask
from fedprune.server.round import Round, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import Tensors


def compared(
    model: Model, r: Round, candidates: Sequence[Candidate], **way: Tensors
) -> Talk[list[float] | None]:
    """The mean validation loss of every candidate over everyone who answers.

    Args:
        model: as it is.
        r: the round.
        candidates: the model as it is first.
        way: `rungs` or, to blend, `given`.

    Returns:
        None instead of losses, if too few answered or they have no labels.
    """
    what: dict[str, Any] = {"part": "validation", "candidates": tuple(candidates), **way}
    (aggregate,) = yield [Ask(r.question(model, "compare", **what), r.everyone())]
    labels = aggregate.totals.get("count", 0.0)
    if len(aggregate.answered) < r.config.min_clients or not labels:
        return None
    return [aggregate.totals[f"loss_{i}"] / labels for i in range(len(candidates))]
