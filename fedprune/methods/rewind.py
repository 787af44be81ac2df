"""Rewinding: survivors of a pruning go back to what they were in an early round.

Frankle et al. 2020, arXiv 1912.05671, section 3: lottery tickets are found from the weights of an
early step on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedprune.methods.method import Rider
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import Tensors, masked


@dataclass(frozen=True)
class Memory:
    """The weights to go back to; None before their round."""

    early: Tensors | None = None


def remembered(model: Model, memory: Memory, r: Round) -> Memory:
    """The weights kept for ``--rewind``, from the round that it names on.

    In the first round from then on that counts, at the latest when pruning begins.
    """
    at = r.config.rewind
    due = at is not None and r.number >= at and memory.early is None and not r.prunings
    return Memory(model.weights) if due else memory


def _rewound(model: Model, memory: Memory) -> Model:
    """The model with its survivors as they were in the early round.

    After the last of a round's prunings: each of them is to see the weights that were trained.
    """
    if memory.early is None:
        return model
    return replace(model, weights=masked(memory.early, model.masks))


def _pruned(before: Model, model: Model, memory: Memory, _: Round) -> Talk[Step]:
    yield from ()
    return Step(model if model.masks is before.masks else _rewound(model, memory), memory)


RIDER = Rider(
    "survivors of a pruning go back to the weights of an early round (--rewind)",
    wanted=lambda c: c.rewind is not None,
    memory=Memory,
    init=lambda model, r: Memory(model.weights if r.config.rewind == 0 == r.number else None),
    keep=remembered,
    pruned=_pruned,
    rewound=_rewound,
    closing=lambda model, memory, r: (model, remembered(model, memory, r)),
)
