"""READ SECOND: what a method is, and what a rider is, as values.

A method decides about masks and averages; a rider is what goes with any method. Both hold
conversations (`fedprune.server.round.Talk`): they yield asks, are sent one sum for each, and return
a `Step`. Traffic, failures, acknowledgements, the ledger, checkpoints and shrinking are the
driver's (`fedprune.rounds`), so a method is one file.

A *memory* is a frozen dataclass of numbers, text, tensors, and tuples and dictionaries of these. It
is kept with the run's checkpoints, comes back bit for bit, and what it holds under the model's
names and in its shapes is cut with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedprune.config import RunConfig
from fedprune.learning.regime import PLAIN_REGIME, Regime
from fedprune.options.section import Section
from fedprune.protocol.aggregate import Aggregate
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model

Refusable = tuple[str, bool, str, str]
"""A key, whether its value is refused, why, and what is allowed."""


@dataclass(frozen=True)
class Nothing:
    """The memory of what remembers nothing."""


@dataclass(frozen=True)
class Trained:
    """What came of a round's training."""

    model: Model | None  # with the clients' changes; None: too few came, and the round is void
    changes: Aggregate  # who answered, their totals, and what else their answers hold
    memory: Any = None  # what the method remembers of it, where the round counts; None: what it did


def nothing(model: Model, memory: Any, *_: Any) -> Talk[Step]:
    """The conversation that asks nothing and changes nothing."""
    return Step(model, memory)
    yield []  # makes it a generator


class NoOptions(Section):
    """The options of what has none."""


@dataclass(frozen=True)
class Method:
    """How a mask is decided and changes are averaged: three conversations of a round.

    Each can come to nothing by itself: `Step.undone` of the first or the last says why a pruning
    did not happen, and it is due in the next round.

    Attributes:
        summary: one line for ``--list``.
        source: the paper, and every departure from it.
        tune: the clients train, their changes are averaged; every round.
        before: before the clients train, in a round where a pruning is due.
        after: after they have trained, every round that is not void; `Round.due` says if a pruning
            is due.
        memory: its type.
        init: the memory before round one, from the model and the round; None: an empty one.
        options: what ``--method-options`` takes.
        own: the model that a partition holds, where clients have their own: it is measured on
            their test parts at the end, too.
        regime: under which clients measure models of their own, of which they keep parts
            themselves (`fedprune.client.personal`).
        scores: whether it asks for the statistics of ``--score``.
        over: whether nothing more will be pruned.
        apart: asks each client by itself or under masks of its own, which secure sums refuse.
        conflicts: what of a configuration, or of its options, it may not go with.
        sets: values of options that make it what it is; others beside it are refused.
        usual: values of options that it has unless others are given.
        parts: densities of the parts of the model that clients have, by its options; None: they
            have the whole.
        whole: clients have the whole model all the same, and `parts` is what they work on in it.
        untrained: it goes with a run in which nobody trains.
        planned: what it does in a round follows from how many rounds there are in all.
    """

    summary: str
    source: str
    tune: Callable[[Model, Any, Round], Talk[Trained]]
    before: Callable[[Model, Any, Round], Talk[Step]] = nothing
    after: Callable[[Model, Any, Round, Aggregate], Talk[Step]] = nothing
    memory: type = Nothing
    init: Callable[[Model, Round], Any] | None = None
    options: type[Section] = NoOptions
    own: Callable[[Model, Any, int], Model] | None = None
    regime: Regime = PLAIN_REGIME
    scores: bool = True
    over: Callable[[Any], bool] = lambda _: False
    apart: bool = False
    conflicts: Callable[[RunConfig, Any], Sequence[Refusable]] = lambda *_: ()
    sets: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)
    parts: Callable[[Any], tuple[float, ...]] | None = None
    whole: bool = False
    untrained: bool = False
    planned: bool = False


@dataclass(frozen=True)
class Rider:
    """What goes with any method. Every hook may be left out; they act in the order of `RIDERS`.

    Attributes:
        summary: one line.
        wanted: whether a configuration asks for it.
        memory: its type.
        init: its memory before round one, or when the model it remembered is no more; None: an
            empty one.
        opening: at the beginning of a round, before its cohort is drawn.
        keep: what it remembers of a model that is about to be pruned or reduced.
        pruned: after a pruning before training, of the same pruning: if it comes to nothing, so
            does the pruning. Called with the model before it and the one after it.
        due: whether `thinning` is due.
        thinning: before training, where it is due, whether or not a pruning was.
        along: what a question to tune says for it.
        summed: its memory after a cohort's summed changes that count. Called with the model that
            the cohort was sent.
        averaged: after the average, before anything is pruned by it. Called with the model before
            the round's changes and the one after.
        rewound: after a pruning by what training gave.
        closing: at the end of a round that counts: its model, and what it remembers of it.
        last: at the end of the last round, if it counts, of the model that is the result; what it
            remembers is all that counts.
        outcome: the model that is the result and is measured.
        lacks: whether what it is for has not happened, which is said of a run that has ended.
    """

    summary: str
    wanted: Callable[[RunConfig], bool]
    memory: type = Nothing
    init: Callable[[Model, Round], Any] | None = None
    opening: Callable[[Model, Any, Round], Talk[Step]] | None = None
    keep: Callable[[Model, Any, Round], Any] | None = None
    pruned: Callable[[Model, Model, Any, Round], Talk[Step]] | None = None
    due: Callable[[Any, Round], bool] = lambda *_: False
    thinning: Callable[[Model, Any, Round], Talk[Step]] | None = None
    along: Callable[[Any, Round], Mapping[str, Any]] | None = None
    summed: Callable[[Model, Any, Round, Aggregate], Any] | None = None
    averaged: Callable[[Model, Model, Any, Round], Talk[Step]] | None = None
    rewound: Callable[[Model, Any], Model] | None = None
    closing: Callable[[Model, Any, Round], tuple[Model, Any]] | None = None
    last: Callable[[Model, Any, Round], Talk[Step]] | None = None
    outcome: Callable[[Model, Any], Model] | None = None
    lacks: Callable[[Model, Any], bool] = lambda *_: False
