"""What of a model is a client's own: weights that it selects, and keeps from round to round.

They lie in what the client remembers (`fedprune.client.memory`) and never leave it.
"""

from __future__ import annotations

from dataclasses import replace
from math import floor

import torch
from torch import Tensor

from fedprune.client.memory import Recollection
from fedprune.protocol.messages import Question
from fedprune.tensors.named import Masks, Tensors, gathered

_SELECTED, _HELD, _VALUES = "selected", "held", "own"
"""Under what a client keeps which weights are its own next, which were, and what these are."""


def own_weights(question: Question, own: Recollection) -> Tensors:
    """The weights of a question with a client's own in their places, where it has any."""
    held, values = own.recall(_HELD), own.recall(_VALUES)
    mine = {n: torch.where(held[n], values[n], question.weights[n]) for n in held}
    return {**question.weights, **mine}


def selected_of(question: Question, own: Recollection) -> Masks:
    """Which weights are a client's own in this round."""
    none = {n: torch.zeros_like(m) for n, m in question.masks.items()}
    return {**none, **own.recall(_SELECTED)}


def with_own(question: Question, own: Recollection) -> Question:
    """The question as a client with weights of its own reads it."""
    return replace(question, weights=own_weights(question, own))


def shared_flags(question: Question, own: Recollection) -> Tensor:
    """The kept weights that are not the client's own, flat."""
    mine = selected_of(question, own)
    return gathered({n: ~m for n, m in mine.items()}, question.changed_on)


def keep_own(begun: Question, own: Recollection, state: Tensors) -> None:
    """Keep a client's own weights after training, and which are next.

    `begun`: the question as the client read it.
    """
    mine, regime = selected_of(begun, own), begun.regime
    own.keep(_HELD, mine)
    own.keep(_VALUES, {n: state[n] * m for n, m in mine.items()})
    moved = {n: (state[n] - begun.weights[n]).abs() for n in mine}
    grown = {
        n: with_most_moved(m, moved[n], begun.masks[n], regime.grows, regime.bound)
        for n, m in mine.items()
    }
    own.keep(_SELECTED, grown)


def with_most_moved(mine: Tensor, moved: Tensor, kept: Tensor, part: float, bound: float) -> Tensor:
    """Flags of own weights, and of that part of the others which moved most.

    `part`: how large a part of the others, rounded; ties go by position. `bound`: of all that are
    kept no more than this part.
    """
    others = kept & ~mine
    room = floor(bound * int(kept.sum())) - int(mine.sum())
    few = max(0, min(round(part * int(others.sum())), room))
    order = torch.where(others, moved, -1.0).flatten().argsort(descending=True, stable=True)
    return mine.flatten().index_fill(0, order[:few], True).reshape(mine.shape)
