"""What a pruning says about itself, beside its mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedprune.protocol.aggregate import Aggregate
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.score import Evidence
from fedprune.server.plan import Plan
from fedprune.tensors.named import Tensors


@dataclass(frozen=True)
class Notes:
    """What a pruning leaves in the row of its round beside its result; None: not measured.

    Attributes:
        agreement: how much two clients' own masks share on average.
        overlap: part of a client's own mask that its scores still give after the cast on the wire.
        standard_error: median over alive weights of the score's standard error / |score|, where
            the score is of pooled sums.
        exchanged: weights that were dropped and as many regrown.
        adaptive: what was tried on validation, how it did, and what was taken.
        blend: which share of the change was kept, and how the others did on validation.
        refit: part of a layer's squared error that reconstruction leaves, mean over layers.
        reduced: what ``--reduce`` took out, and the errors that it made.
        undone: what was due in the round and did not happen, for want of answers.
        left_out: the clients that were not asked for their strikes.
        method: what the method says about the round, by name.
    """

    agreement: float | None = None
    overlap: float | None = None
    standard_error: float | None = None
    exchanged: int | None = None
    adaptive: dict[str, Any] | None = None
    blend: dict[str, Any] | None = None
    refit: float | None = None
    reduced: dict[str, Any] | None = None
    undone: str | None = None
    left_out: tuple[int, ...] | None = None
    method: dict[str, Any] | None = None

    def joined(self, more: Notes) -> Notes:
        """These notes and more of the same round: a later one counts, what is undone adds up."""
        said = {n: v for n, v in vars(more).items() if v is not None}
        if self.method and more.method:
            said["method"] = {**self.method, **more.method}
        if self.undone and more.undone:
            said["undone"] = f"{self.undone}; {more.undone}"
        return replace(self, **said)


def noted(aggregate: Aggregate, evidence: Evidence, plan: Plan) -> Notes:
    """What the answers to a score's last ask say about it."""
    c = plan.config
    flipped = c.response is not None  # such votes agree less than the masks they are made of
    own = aggregate.totals.get("own")
    # It is that of the pooled sums: of scores that clients made of their own there are none.
    error = scores_of(c.plugin)[c.score].error if combines_of(c.plugin)[c.combine].pooled else None
    return Notes(
        None if flipped else agreement_of(aggregate),
        aggregate.totals["overlap"] / own if own else None,
        None if error is None else _relative(error(evidence), evidence, plan),
    )


def _relative(errors: Tensors, evidence: Evidence, plan: Plan) -> float | None:
    """The median over alive weights of |standard error / score|; None where no score is not 0."""
    c = plan.config
    scores = scores_of(c.plugin)[c.score].finalise(evidence)
    parts = [(errors[n] / s.abs())[evidence.masks[n] & (s != 0)] for n, s in scores.items()]
    flat = torch.cat(parts)
    return float(flat.median()) if flat.numel() else None


def agreement_of(evidence: Aggregate) -> float | None:
    """How much two clients' own masks share on average: Σ c_j (c_j - 1) / (K (K-1) k).

    c_j counts the clients that vote to keep weight j, K clients voted, each for k weights. None
    where fewer than two voted. Unlike a mean over pairs it needs only the sum of the votes.
    """
    votes, voters = evidence.votes, len(evidence.answered)
    if votes is None or voters < 2:
        return None
    some = map(Tensor.long, votes.split(_AT_ONCE))
    parts = [(int(v.sum()), int((v * (v - 1)).sum())) for v in some]
    each = sum(kept for kept, _ in parts) / voters
    if not each:
        return None
    pairs = sum(both for _, both in parts)
    return pairs / (voters * (voters - 1) * each)


_AT_ONCE = 2**20
"""Counts that are multiplied at once: of all of a large model's it would be twice their memory."""
