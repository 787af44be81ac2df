"""A conversation with clients: what a method or a rider of the round knows, yields and returns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedprune.config import RunConfig
from fedprune.config.cohort import scored_of
from fedprune.config.kinds import KINDS
from fedprune.learning.candidates import Candidate
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Ask
from fedprune.server.diagnostics import Notes
from fedprune.server.plan import Plan
from fedprune.server.state import Model
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Tensors, masked

_T = TypeVar("_T")

Talk = Generator[Sequence[Ask], list[Aggregate], _T]
"""Yields the asks of an exchange, is sent one sum for each, and returns what came of it."""


@dataclass(frozen=True)
class Round:
    """What is known in a round.

    Attributes:
        number: from 1.
        plan: what stays the same for the run; fits the model that is handed over with this.
        cohort: the partitions of the round.
        everyone: the partitions whose held-out parts can be measured on.
        training: the partitions that a cohort can be drawn from.
        present: the partitions that can be asked at all.
        due: whether a pruning is due.
        prunings: how many there were before.
        pruned: whether there was one in this round, once its clients have tuned.
        pending: whether one was due and came to nothing.
        along: what else a question to tune says, by riders.
        options: of the method, as its `Method.options` has them.
    """

    number: int
    plan: Plan
    cohort: Sequence[int] = ()
    everyone: Callable[[], Sequence[int]] = list
    training: Callable[[], Sequence[int]] = list
    present: Callable[[], Sequence[int]] = list
    due: bool = False
    prunings: int = 0
    pruned: bool = False
    pending: bool = False
    along: Mapping[str, Any] = field(default_factory=dict)
    options: Any = None

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.plan.config

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.plan.layout

    @property
    def scored(self) -> Sequence[int]:
        """The partitions that are asked for scores."""
        if self.config.score_cohort == "cohort":
            return self.cohort
        return scored_of(self.config, self.training(), self.number)

    def question(self, model: Model, kind: str, **what: Any) -> Question:
        """A question of this round about a model."""
        weights = model.weights
        if model.adapters and KINDS[kind].weights:
            weights = masked(self.plan.frozen, model.masks)
            what = {"adapters": model.adapters, **what}
        return Question(kind, self.number, weights, model.masks, edits=model.edits, **what)


@dataclass(frozen=True)
class Step:
    """What came of a conversation: the new model, what is remembered of it, and notes for its row.

    With why it came to nothing, `undone`, model and memory do not count.
    """

    model: Model
    memory: Any = None
    notes: Notes = field(default_factory=Notes)
    undone: str = ""


def compared(
    model: Model, r: Round, candidates: Sequence[Candidate], **way: Tensors
) -> Talk[list[float] | None]:
    """The mean validation loss of every candidate over everyone who answers.

    A question names the model as it is, the first of them, and some near it; every client measures
    all of them, and what comes back are sums: a loss is the pooled one. The test parts choose
    nothing. `way` is `rungs` or, to blend, `given`.

    Returns:
        None instead of losses, if too few answered or they have no labels.
    """
    what: dict[str, Any] = {"part": "validation", "candidates": tuple(candidates), **way}
    (aggregate,) = yield [Ask(r.question(model, "compare", **what), r.everyone())]
    labels = aggregate.totals.get("count", 0.0)
    if len(aggregate.answered) < r.config.min_clients or not labels:
        return None
    return [aggregate.totals[f"loss_{i}"] / labels for i in range(len(candidates))]
