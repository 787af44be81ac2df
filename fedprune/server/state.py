"""What a run carries from round to round, what stays the same, and the port to its clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from fedprune.config import RunConfig
from fedprune.learning.moving_average import Moving
from fedprune.protocol.messages import Failure
from fedprune.selection.ladder import AdaptiveState
from fedprune.selection.schedules import (
    SCHEDULES,
    prunes_at,
    sparsity_at,
    step_at,
)
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout
from fedprune.tasks.task import Part
from fedprune.tensors import Masks, Tensors, copied, full_masks, state_of

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
class State:
    """All that a run carries from round to round; a checkpoint is one of these.

    Attributes:
        round: rounds played so far.
        weights: the global model's state, float32, 0.0 where a mask is False.
        masks: True = kept, for every prunable tensor.
        known: partition to the digest of the mask it acknowledged.
        traffic: bytes so far.
        completed: rounds whose average had enough answers.
        failures: those of the current round.
        failed: how many failures there were in all.
        dense_at_pruning: test totals when pruning began.
        owed: a pruning was due and had too few answers; the next round makes up for it.
        prunings: how many there were, exchanges included.
        reduced: what is redundant was taken out (``--reduce``).
        counted: partition to the round of its newest change that is in an average; kept with
            ``--error-feedback`` alone.
        early: the weights that survivors go back to when they are pruned (``--rewind``).
        edits: what was cut out of the dense model or replaced in it; all tensors here have the
            shapes that it has then.
        teacher: the model before it was pruned, where clients learn from it
        (`fedprune.client.teacher`). taught: partition to the name of the teacher it acknowledged.
        pace: where an adaptive schedule stands; None before its first pruning. moving: running
        average of the weights, where there is one (``--moving``). sums: who was in the secure sums
        so far, each set of clients once. notices: what is worth knowing about those of the current
        round. norms: the newest norms of changes that counted, with ``--max-norm`` alone. strikes:
        partition to the rounds in a row in which it failed, with ``--strikes`` alone. resting:
        partition to the last round in which it is left out. tested: test totals at the end of the
        run; None before.
    """

    round: int
    weights: Tensors
    masks: Masks
    known: dict[int, str]
    traffic: Traffic = Traffic()
    completed: int = 0
    failures: tuple[Failure, ...] = ()
    failed: int = 0
    dense_at_pruning: Totals | None = None
    owed: bool = False
    early: Tensors | None = None
    edits: Edits = ()
    teacher: bytes = b""
    taught: dict[int, str] = field(default_factory=dict)
    pace: AdaptiveState | None = None
    moving: Moving | None = None
    sums: tuple[frozenset[int], ...] = ()
    notices: tuple[str, ...] = ()
    prunings: int = 0
    reduced: bool = False
    counted: dict[int, int] = field(default_factory=dict)
    norms: tuple[float, ...] = ()
    strikes: dict[int, int] = field(default_factory=dict)
    resting: dict[int, int] = field(default_factory=dict)
    tested: Totals | None = None


ASKING = ("known", "taught", "traffic", "failures", "failed", "sums", "notices", "norms")
"""What asking alone changes in a state, whatever is made of the answers."""


def undone(before: State, after: State) -> State:
    """The state as it was before, but for what asking has changed: bytes, failures, who has what.

    For all that comes to nothing: a void round, a pruning that too few answered, a candidate that
    is not taken.
    """
    return replace(before, **{name: getattr(after, name) for name in ASKING})


@dataclass(frozen=True)
class Plan:
    """What stays the same for a whole run.

    Attributes:
        config: complete configuration.
        layout: the layout of the model as it is now, see `fedprune.server.shrink.fitted`.
        dense_packet: bytes of one dense fp32 tuning question and of its answer.
        model: one to compute with on the server, for scores that look at no data; its values are
            overwritten.
        dummy: one example without data in it, where the task has one.
        positions: rows that each prunable layer sees in one example, for FLOPs.
        edits: what layout, model and positions are made for.
        start: the sparsity that the run begins with.
        flops_dense: of the dense model's prunable layers; 0.0 where positions are not known.
        teacher: another run's model to learn from (`fedprune.client.teacher`), or empty.
    """

    config: RunConfig
    layout: Layout
    dense_packet: tuple[int, int]
    model: nn.Module | None = None
    dummy: Part | None = None
    positions: Mapping[str, float] = field(default_factory=dict)
    edits: Edits = ()
    flops_dense: float = 0.0
    start: float = 0.0
    teacher: bytes = b""

    def prunes(self, round_: int) -> bool:
        """Whether this round scores and prunes."""
        c = self.config
        if c.sparsity is not None and c.sparsity <= self.start:
            return False
        return prunes_at(c.schedule, round_, start=c.warmup + 1, end=c.end, frequency=c.frequency)

    @property
    def asks_first(self) -> bool:
        """Whether a pruning asks for statistics before tuning, in a question of its own."""
        return self.config.score_during == "pass" and self.config.masks == "global"

    @property
    def adapts(self) -> bool:
        """Whether clients' validation parts decide how much goes in a pruning."""
        return SCHEDULES[self.config.schedule].chosen

    def progress(self, round_: int) -> float:
        """The part of the way to the final sparsity that is behind after this round."""
        # Only of the exponential schedule the way depends on where it leads.
        final = self.config.sparsity or 0.5
        return self._reached(round_, final) / final

    def sparsity(self, round_: int) -> float | None:
        """The sparsity in force after this round; None where something else decides."""
        final = self.config.sparsity
        if final is None or not self.start:
            return final if final is None else self._reached(round_, final)
        return self.start + max(0.0, final - self.start) * self.progress(round_)

    def _reached(self, round_: int, final: float) -> float:
        c = self.config
        return sparsity_at(
            c.schedule,
            round_,
            start=c.warmup + 1,
            end=c.end,
            frequency=c.frequency,
            final=final,
        )

    def due(self, state: State) -> bool:
        """Whether a pruning is due in the state's round, by the schedule or from before."""
        return state.owed or self.prunes(state.round)

    def exchanges(self, state: State) -> bool:
        """Whether a pruning drops and regrows at constant sparsity: after the first one."""
        return SCHEDULES[self.config.schedule].exchanges and state.prunings > 0

    def reduces(self, state: State) -> bool:
        """Whether what is redundant is due to be taken out."""
        c = self.config
        come = c.reduce_round is not None and state.round >= c.reduce_round
        return bool(c.reduce) and come and not state.reduced

    def done(self, state: State) -> bool:
        """Whether all that the configuration asks for was done, and nothing is owed any more."""
        rounds = range(1, self.config.rounds + 1)
        last = max((r for r in rounds if self.prunes(r)), default=0)
        lacks = state.owed or (bool(self.config.reduce) and not state.reduced)
        uncounted = self.config.vocabulary == "used" and all(e.kind != "vocab" for e in state.edits)
        return not (lacks or uncounted) and state.round >= last

    def exchange_step(self, round_: int) -> tuple[int, int]:
        """Which exchange this is, from 1, and how many there are."""
        c = self.config
        step, steps = step_at(round_, start=c.warmup + 1, end=c.end, frequency=c.frequency)
        return step - 1, steps

    def phase(self, state: State) -> str:
        """The part of the run that the state's round is: warmup, prune, reduce or recover.

        Dense is that of an arm that never prunes, update that of a run that goes on from a pruned
        one and prunes no further.
        """
        c, round_ = self.config, state.round
        if c.sparsity == 0.0:
            return "update" if self.start else "dense"
        if self.due(state):
            return "prune"
        if self.reduces(state):
            return "reduce"
        last = c.end if c.threshold is None else c.warmup + 1
        return "warmup" if round_ <= c.warmup else "prune" if round_ < last else "recover"


def first_state(model: nn.Module, layout: Layout) -> State:
    """The state before round one: the model as it is, nothing removed."""
    weights = copied(state_of(model))
    return State(0, weights, full_masks(weights, layout.prunable), {})
