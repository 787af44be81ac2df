"""What stays the same for a whole run, and what is due when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from fedprune.config import RunConfig
from fedprune.config.profiles import DeviceClass
from fedprune.config.rates import prunes_in, steps_of
from fedprune.protocol.held_weights import BaseModel
from fedprune.selection.schedules import schedules_of, sparsity_at
from fedprune.server.state import State
from fedprune.structure.edits import Edits
from fedprune.structure.flops import Passes
from fedprune.structure.layout import Layout
from fedprune.tasks.task import Part
from fedprune.tensors.named import Tensors


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
        passes: operations of one example, where devices are simulated.
        edits: what layout, model and positions are made for.
        start: the sparsity that the run begins with.
        flops_dense: of the dense model's prunable layers; 0.0 where positions are not known.
        teacher: another run's model to learn from (`fedprune.client.teacher`), or empty.
        base: weights that clients hold already; None: all are sent.
        fleet: the class of devices of every client; empty: none is simulated.
        tiers: which of the method's parts, or of ``--ranks``, every client has; empty: those in
            turn.
        parts: densities of these parts, by client; empty: all have the whole model.
        steps: part of its steps that every client takes, where devices decide that; else empty.
        frozen: weights beside which there are adapters, as they were before round one.
    """

    config: RunConfig
    layout: Layout
    dense_packet: tuple[int, int]
    model: nn.Module | None = None
    dummy: Part | None = None
    positions: Mapping[str, float] = field(default_factory=dict)
    passes: Passes | None = None
    edits: Edits = ()
    flops_dense: float = 0.0
    start: float = 0.0
    teacher: bytes = b""
    base: BaseModel | None = None
    fleet: tuple[DeviceClass, ...] = ()
    tiers: tuple[int, ...] = ()
    parts: tuple[float, ...] = ()
    steps: tuple[float, ...] = ()
    frozen: Tensors = field(default_factory=dict)

    def prunes(self, round_: int) -> bool:
        """Whether this round scores and prunes."""
        c = self.config
        if c.sparsity is not None and c.sparsity <= self.start:
            return False
        return prunes_in(c, round_)

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
        return sparsity_at(c.schedule, round_, steps_of(c), final, schedules_of(c.plugin))

    def due(self, state: State) -> bool:
        """Whether a pruning is due in the state's round, by the schedule or from before."""
        return state.pending or self.prunes(state.round)

    def exchange_step(self, round_: int) -> tuple[int, int]:
        """Which exchange this is, from 1, and how many there are."""
        step, steps = steps_of(self.config).done(round_)
        return step - 1, steps

    def phase(self, state: State, *, reduces: bool) -> str:
        """The part of the run that the state's round is: warmup, prune, reduce or recover.

        Dense is that of an arm that never prunes, update that of a run that goes on from a pruned
        one and prunes no further.
        """
        c, round_ = self.config, state.round
        if c.sparsity == 0.0 and not reduces:
            return "update" if self.start else "dense"
        if self.due(state):
            return "prune"
        if reduces:
            return "reduce"
        last = c.end if c.threshold is None else c.warmup + 1
        return "warmup" if round_ <= c.warmup else "prune" if round_ < last else "recover"
