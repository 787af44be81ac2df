"""What a score is: which sums clients are asked for, and what the server makes of them.

The catalogue is in `fedprune.scores.catalog`. Everything here is data; who asks and who answers
is in `fedprune.rounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedprune.structure.layout import Layout
from fedprune.tasks.task import Loss, Part
from fedprune.tensors.named import Masks, Tensors

Shapes = Mapping[str, torch.Size]


def _forgetful(_: Tensors) -> None:
    raise ValueError("remember: only in the last ask of a score that has remembers=True")


@dataclass(frozen=True)
class Probe:
    """What a statistic is taken from: a model in eval mode and one client's training part."""

    model: nn.Module  # holds the weights that were sent; must be left bit-identical
    layout: Layout
    # names of the tensors asked about: all of the layout's, or some of them
    prunable: Sequence[str]
    # the client's training part, on the model's device; may be gone through again
    batches: Iterable[Part]
    loss: Callable[[nn.Module, Part], Loss]  # sums over a batch
    masks: Masks  # True = alive
    # what the server sent along, by the names of `Statistic.given`; empty for most scores
    given: Tensors = field(default_factory=dict)
    # the kind of unit that is scored (a name in `fedprune.selection.units.UNITS`)
    unit: str = "weight"
    probes: int = 0  # how many random perturbations to take, for the scores that take some
    # the same on the server and all clients in this round: for numbers that both draw
    seed: int = 0
    by_block: bool = False  # gradients are to be taken a block of the model at a time
    # what this client kept of a score that remembers, before this round; its own
    remembered: Tensors = field(default_factory=dict)
    # keeps named tensors in place of it. They never leave the client, and count if its answer does.
    remember: Callable[[Tensors], None] = _forgetful

    def total_loss(self) -> float:
        """The loss summed over all batches."""
        return sum(float(self.loss(self.model, batch).total) for batch in self.batches)


@dataclass(frozen=True)
class Evidence:
    """What the server scores with."""

    # the clients' statistics added up, float64; empty for a score that asks no client
    sums: Tensors
    count: float  # labels that the statistics were summed over
    weights: Tensors  # the current weights of the tensors to score, 0.0 where removed
    masks: Masks  # True = alive, of the same tensors
    layout: Layout
    generator: torch.Generator  # seeded for this round
    seed: int = 0  # as in `Probe`
    probes: int = 0  # as in `Probe`
    unit: str = "weight"  # as in `Probe`
    # a model to compute with (its values are overwritten), holding the current weights; None where
    # there is none, and for scores of fedprune's own that ask clients
    model: nn.Module | None = None
    dummy: Part | None = None  # one example without data in it, where the task has one
    given: Tensors = field(default_factory=dict)  # what was sent along with the last ask


@dataclass(frozen=True)
class Watcher:
    """Adds a statistic up while somebody else runs batches through the model.

    Attributes:
        sums: the statistic so far.
        after_backward: called with the number of labels of a step when the parameters hold the
            gradient of the *mean* loss over them; None: nothing is taken from gradients.
    """

    sums: Tensors
    after_backward: Callable[[int], None] | None = None


def unrecognised(score: str, what: str) -> ValueError:
    """The refusal of a model without what a score is of."""
    return ValueError(
        f"score={score!r}: no {what} were recognised in this model; "
        "allowed: models of the families in --list, or another score"
    )


Watching = Callable[[nn.Module, Layout, Sequence[str]], AbstractContextManager[Watcher]]
"""Puts a watcher on a model for a while."""


def weight_shapes(layout: Layout, names: Sequence[str], _unit: str, _probes: int) -> Shapes:
    """One number for every weight of the tensors asked about."""
    return {name: layout.shapes[name] for name in names}


@dataclass(frozen=True)
class Statistic:
    """One question to the clients: what each of them sums over its shard.

    Attributes:
        collect: the client's summand, by the names and shapes of `shapes`, float32 or float64.
        shapes: what it consists of, from the layout, the tensors asked about, the kind of unit and
            the number of probes. A summand with a tensor's name and shape is sent only where that
            tensor is alive; any other is sent whole.
        given: what is sent along with the question, computed from the evidence of the ask before
            (for the first ask, evidence without sums); same rule for names and shapes.
        watch: the same sums collected while a client tunes; None: only a pass of its own will do.
        passes: what it costs a client, in words: "1 forward, 1 backward".
        forwards: the same in forward passes over the examples, from how many numbers a summand
            holds, where the words do not say it: see `forwards_of`.
        products: operations for one example beside these passes, from how many rows the layer of
            each tensor sees in one and from what a summand holds; None: hardly any.
        signed: the sums may be below 0; those that cannot need less noise to hide a client.
        by_block: `collect` heeds `Probe.by_block`.
    """

    collect: Callable[[Probe], Tensors]
    shapes: Callable[[Layout, Sequence[str], str, int], Shapes] = weight_shapes
    given: Callable[[Evidence], Tensors] | None = None
    watch: Watching | None = None
    passes: str = "1 forward, 1 backward"
    forwards: Callable[[int], float] | None = None
    products: Callable[[Mapping[str, float], Shapes], float] | None = None
    signed: bool = True
    by_block: bool = False


FORWARDS_OF_A_STEP = 3.0
"""Operations of a forward and a backward pass, in forward passes: a backward pass takes two (Kaplan
et al. 2020, arXiv 2001.08361, section 2.1)."""


def forwards_of(statistic: Statistic, numbers: int) -> float:
    """How many forward passes over its examples a client takes for so many numbers of a statistic.

    A backward pass counts as two. What a statistic of the user's own takes is what its `forwards`
    say, or one pass if its `passes` are "1 forward", else a pass forward and back.
    """
    if statistic.forwards is not None:
        return statistic.forwards(numbers)
    return 1.0 if statistic.passes == "1 forward" else FORWARDS_OF_A_STEP


@dataclass(frozen=True)
class ByTensor:
    """A `Score.finalise` that scores a tensor alike, whichever others are in the evidence.

    A model that is not in memory is scored a tensor at a time by such a function only. What it
    wraps is not checked for this.
    """

    formula: Callable[[Evidence], Tensors]

    def __call__(self, evidence: Evidence) -> Tensors:
        """The score of every weight asked about."""
        return self.formula(evidence)


@dataclass(frozen=True)
class ByBlock(ByTensor):
    """The same where a tensor's score depends on its block (`fedprune.structure.groups.stages_of`).

    It scores the tensors of a block alike, whichever others are in the evidence.
    """


Solve = Callable[[Evidence, Mapping[str, float], tuple[int, int] | None], tuple[Masks, Tensors]]
"""From evidence, the sparsity of each tensor and N:M (or None) to masks and new weights."""


@dataclass(frozen=True)
class Score:
    """One way to say how important a weight is. Higher = keep.

    Attributes:
        summary: one line for ``--list``, with the formula.
        source: where it is from.
        finalise: the score of every weight asked about, from the evidence of the last ask. A score
            of larger units gives every weight the score of its unit.
        asks: what the clients are asked, in this order; none: the score asks no client.
        additive: the statistics are sums over examples, so federated equals pooled.
        units: the kinds of unit it scores; empty: all of them.
        step: prunes by itself, instead of by selection on `finalise`'s scores.
        at_start: only meaningful before any training: warm-up must be 0.
        tuning: only collected while clients tune (``--score-during tune``).
        error: the standard error of the scores, where they are estimates.
        rescored: depends on what was removed before, so that scoring again tells something new.
        most: with unit weight, refuses models with more prunable weights than this; 0: no limit.
        refuses: raises a ValueError for a model that the score is not for, before anything starts.
        remembers: each client keeps something of its own for the next time (`Probe.remember`).
        makes_up: what layers' biases make up for when masks remove weights: from the evidence and
            the new masks to what is added to them, (out,) by the weight's name.
    """

    summary: str
    source: str
    finalise: Callable[[Evidence], Tensors]
    asks: tuple[Statistic, ...] = ()
    additive: bool = True
    units: tuple[str, ...] = ()
    step: Solve | None = None
    at_start: bool = False
    tuning: bool = False
    error: Callable[[Evidence], Tensors] | None = None
    rescored: bool = True
    most: int = 0
    refuses: Callable[[nn.Module, Part | None], None] | None = None
    remembers: bool = False
    makes_up: Callable[[Evidence, Masks], Tensors] | None = None

    @property
    def apart(self) -> bool:
        """Whether tensors, or blocks, are scored one by one: then `finalise` is a `ByTensor`."""
        return isinstance(self.finalise, ByTensor)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """`Statistic` by the name that plug-ins of before know it by."""
        if name == "Ask":
            return Statistic
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
