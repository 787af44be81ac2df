"""What a run carries from round to round: the model, memories, and a book of what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fedprune.protocol.failures import Failure
from fedprune.streaming.packed import masks_for
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import in_memory
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Masks, Tensors, laid_out_copies, masked

Totals = dict[str, float]
"""Named sums over clients: loss, correct, count."""


@dataclass(frozen=True)
class Traffic:
    """Bytes so far, as devices would have sent and received them.

    Attributes:
        up: scoring and tuning answers.
        down: scoring and tuning questions.
        evaluation: questions and answers that only measure.
        dense: what the same tuning asks would have cost dense FedAvg in fp32.
    """

    up: int = 0
    down: int = 0
    evaluation: int = 0
    dense: int = 0


@dataclass(frozen=True)
class Model:
    """The global model: what methods and riders decide about.

    Attributes:
        weights: the state, float32, 0.0 where a mask is False.
        masks: True = kept, for every prunable tensor.
        edits: what was cut out of the dense model or replaced in it; all tensors here have the
            shapes that it has then.
        adapters: of frozen weights (`fedprune.adapters.factors`), which `weights` are merged with;
            none: the weights themselves are trained.
    """

    weights: Tensors
    masks: Masks
    edits: Edits = ()
    adapters: Tensors = field(default_factory=dict)

    def under(self, masks: Masks) -> Model:
        """The model under these masks."""
        return replace(self, masks=masks, weights=masked(self.weights, masks))


@dataclass(frozen=True)
class Book:
    """What asking changes, whatever is made of the answers: traffic, failures, who has what.

    Attributes:
        known: partition to the digest of the model (mask and edits) that it acknowledged.
        taught: partition to the name of the teacher that it acknowledged.
        traffic: bytes so far.
        failures: those of the current round.
        failed: how many failures there were in all.
        sums: who was in the secure sums so far, each set of clients once.
        notices: what is worth knowing about the current round.
        norms: the newest norms of changes that counted, with ``--max-norm`` alone.
        strikes: partition to the rounds in a row in which it failed, with ``--strikes`` alone.
        resting: partition to the last round in which it is left out.
        kept: by the question with which clients keep something that they remember
            (`fedprune.client.memory`), whose answers came in this round.
        clock: seconds of the simulated devices so far (`fedprune.server.fleet`).
        joules: what they used.
        paid: bytes down and up of one of them, by kind of question, in its newest phase.
        counted: the same, partition to the newest round that is over and in which its answer
            counted.
    """

    known: dict[int, str] = field(default_factory=dict)
    taught: dict[int, str] = field(default_factory=dict)
    traffic: Traffic = Traffic()
    failures: tuple[Failure, ...] = ()
    failed: int = 0
    sums: tuple[frozenset[int], ...] = ()
    notices: tuple[str, ...] = ()
    norms: tuple[float, ...] = ()
    strikes: dict[int, int] = field(default_factory=dict)
    resting: dict[int, int] = field(default_factory=dict)
    kept: dict[str, frozenset[int]] = field(default_factory=dict)
    counted: dict[str, dict[int, int]] = field(default_factory=dict)
    clock: float = 0.0
    joules: float = 0.0
    paid: dict[str, tuple[float, float]] = field(default_factory=dict)

    def with_failures(self, failures: Sequence[Failure]) -> Book:
        """The book with more failures."""
        return replace(
            self, failures=(*self.failures, *failures), failed=self.failed + len(failures)
        )


@dataclass(frozen=True)
class Best:
    """The best round of an arm so far, by its loss on validation (`fedprune.methods.best`).

    `waited` are rounds since then that were measured and are no better; the model is there where it
    may become the result.
    """

    round: int
    loss: float
    sparsity: float
    waited: int
    model: Model | None


@dataclass(frozen=True)
class BeforeTest:
    """What the test at the end of a run of so many rounds changed, so that it can have more."""

    rounds: int
    book: Book


@dataclass(frozen=True)
class State:
    """All that a run carries from round to round; a checkpoint is one of these.

    Attributes:
        round: rounds played so far.
        model: the global model.
        book: traffic, failures, who has what.
        memories: what the method and the riders remember, by their names; each a frozen dataclass.
        completed: rounds whose average had enough answers.
        prunings: how many there were, exchanges included.
        pending: a pruning was due and had too few answers; the next round makes up for it.
        dense_at_pruning: test totals when pruning began.
        tested: test totals at the end of the run; None before.
        tested_new: those of the clients that never train, where there are some.
        tested_own: those of the clients' own models, where the method gives them some.
        best: the best round so far, where that is asked for.
        before_test: what asking for those test totals has changed.
    """

    round: int
    model: Model
    book: Book = Book()
    memories: dict[str, Any] = field(default_factory=dict)
    completed: int = 0
    prunings: int = 0
    pending: bool = False
    dense_at_pruning: Totals | None = None
    tested: Totals | None = None
    tested_own: Totals | None = None
    best: Best | None = None
    before_test: BeforeTest | None = None
    tested_new: Totals | None = None

    @property
    def weights(self) -> Tensors:
        """Those of the model."""
        return self.model.weights

    @property
    def masks(self) -> Masks:
        """Those of the model."""
        return self.model.masks

    @property
    def edits(self) -> Edits:
        """Those of the model."""
        return self.model.edits


def first_state(model: nn.Module, layout: Layout, weights: Tensors | None = None) -> State:
    """The state before round one: the model as it is, nothing removed.

    Its weights are copied, unless they are kept already: then they are given as `weights`.
    """
    if weights is None:
        weights = state_of(model)
        weights = laid_out_copies(weights) if in_memory(weights) else weights
    return State(0, Model(weights, masks_for(weights, layout.prunable)))


def untested(state: State, rounds: int) -> State:
    """The state before the test at the end, if there are more rounds now than there were then."""
    before = state.before_test
    if before is None or rounds <= before.rounds:
        return state
    return replace(
        state, book=before.book, tested=None, tested_own=None, tested_new=None, before_test=None
    )


def reverted(before: State, after: State) -> State:
    """The state as it was before, but for what asking has changed.

    For all that comes to nothing: a void round, a pruning that too few answered.
    """
    return replace(before, book=replace(after.book, kept=before.book.kept))
