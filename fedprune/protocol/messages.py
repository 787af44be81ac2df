"""Questions and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fedprune.learning.candidates import Candidate
from fedprune.learning.regime import PLAIN_REGIME, Regime
from fedprune.structure.edits import Edits
from fedprune.tensors.named import Masks, Tensors, cuts, whole_of


@dataclass(frozen=True)
class Question:
    """What the server asks: the model as it is, its mask, and what to do.

    Attributes:
        kind: "score", "tune", "evaluate", "compare" (evaluate candidates), "describe" (count
            labels), "tokens" (count them), "inputs" (second moments), "outputs" (those, and with
            what a layer made before it was pruned), "magnitudes" (sizes of inputs), "signals"
            (second moments of what runs between layers), or "own" (what a client that prunes by
            itself before it tunes would keep: votes alone).
        round: from 1.
        weights: the global model's state, zero where a mask is False.
        masks: True = kept, for every prunable tensor.
        score: which statistics, for "score"; for "tune", those to collect on the way, or those
            that the client prunes by before it tunes; "" for none.
        ask: which of the score's asks.
        names: the tensors asked about; none: all that are prunable.
        given: what goes along with the ask, by name.
        dense: asks about removed weights as well (to regrow some); for "tune" with a score: clients
            collect its statistics of all weights.
        sparsity: clients make their own mask of this sparsity (votes); None: they do not.
        progress: part of the schedule's way that is behind, for densities and caps on the way.
        lr: learning rate, for "tune".
        part: "validation" or "test", for "evaluate" and "compare".
        known: partitions that hold this mask and these edits already.
        edits: what makes of the dense model the one with these weights.
        teacher: a model to learn from, see `fedprune.client.teacher`; empty: none.
        distil: factor of the weights of distillation.
        taught: partitions that hold this teacher already.
        candidates: what to compare, the model as it is first; what lies on the way to them is in
            `rungs` or, to blend, in `given`.
        rungs: at which rung of a ladder of masks a weight goes, uint8, 0 where it stays.
        counted: partition to the newest round in which its answer to such a question counted, where
            clients remember something of it (`fedprune.client.memory`).
        limit: the largest norm of a change that counts; 0.0: there is none.
        again: how often it was put before by a run that was killed then: seeded noise is another.
        base: digest of the base model (`fedprune.protocol.held_weights`) whose tensors are those of
            `weights` under `masks`, but for those `unlike` it, which alone are sent; "": all are.
        unlike: names, sorted.
        adapters: factors beside the weights (`fedprune.adapters.factors`), which are frozen then; a
            change is of these alone.
        grow: by what a client that exchanges weights as it tunes grows removed ones (a name in
            `fedprune.selection.regrowth.GROWN`); "": it exchanges none.
        exchange: part of each tensor's kept weights that it exchanges.
        turn: part of its steps that it takes before that.
        extrude: weight of the squares of those kept weights of every tensor, the smallest, whose
            part `exchange` is, in what a client minimises; 0.0: none.
        fresh: rank of the factors that a client begins anew, with which a change begins, beside the
            adapters, which are merged then; 0: it goes on with the adapters.
        regime: how clients train and what they send.
    """

    kind: str
    round: int
    weights: Tensors
    masks: Masks
    score: str = ""
    ask: int = 0
    names: tuple[str, ...] = ()
    given: Tensors = field(default_factory=dict)
    dense: bool = False
    sparsity: float | None = None
    lr: float = 0.0
    part: str = ""
    progress: float = 1.0
    known: frozenset[int] = frozenset()
    edits: Edits = ()
    teacher: bytes = b""
    distil: float = 0.0
    taught: frozenset[int] = frozenset()
    candidates: tuple[Candidate, ...] = ()
    rungs: Tensors = field(default_factory=dict)
    counted: Mapping[int, int] = field(default_factory=dict)
    limit: float = 0.0
    again: int = 0
    base: str = ""
    unlike: tuple[str, ...] = ()
    adapters: Tensors = field(default_factory=dict)
    fresh: int = 0
    grow: str = ""
    exchange: float = 0.0
    turn: float = 1.0
    extrude: float = 0.0
    regime: Regime = PLAIN_REGIME

    @property
    def changed_on(self) -> Masks:
        """The masks that a change lies on; none, which is everything, where removed weights train.

        Of what was removed alone, where that is all that is sent.
        """
        if self.regime.sends == "complement":
            return {name: ~mask for name, mask in self.masks.items()}
        return {} if self.grow or self.regime.whole else self.masks

    @cached_property
    def whole(self) -> Tensor | None:
        """The weights as they lie one behind the other, where they do and a change is of all."""
        return None if cuts(self.changed_on) else whole_of(self.weights)


@dataclass(frozen=True)
class Answer:
    """One client's release.

    Attributes:
        values: flat float32 summand on kept coordinates ("score": of the prunable tensors,
            "tune": the change of the whole state); empty for "evaluate".
        weight: factor of `values` in the sum (labels, when a mean is weighted by them).
        totals: named sums that simply add up: loss, correct, count.
        votes: the client's own mask on the kept coordinates, flat, or None.
        statistics: those collected while tuning, flat, or None.
    """

    values: Tensor
    weight: float
    totals: dict[str, float]
    votes: Tensor | None = None
    statistics: Tensor | None = None
