"""Distillation: the teacher that a run keeps, and what a question to tune says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedprune.client.teacher import distils
from fedprune.codec.coded_file import to_coded
from fedprune.config import RunConfig
from fedprune.methods.method import Rider
from fedprune.protocol.origin import origin_of
from fedprune.server.round import Round
from fedprune.server.state import Model


@dataclass(frozen=True)
class Memory:
    """The model before it was pruned or reduced at first, in a coded file; empty: none yet."""

    teacher: bytes = b""


def _kept(model: Model, memory: Memory, r: Round) -> Memory:
    """The model kept as the teacher, before it is pruned or reduced at first."""
    if memory.teacher or r.plan.teacher:
        return memory
    return Memory(to_coded(origin_of(r.config, model.edits), model.weights, model.masks))


def teaching(memory: Memory, r: Round) -> dict[str, Any]:
    """What a question to tune says about the teacher; nothing where there is none yet."""
    teacher = r.plan.teacher or memory.teacher
    return {"teacher": teacher, "distil": factor(r.config, r.number)} if teacher else {}


def factor(config: RunConfig, round_: int) -> float:
    """What the weights of distillation are multiplied by in a round.

    Linear: 1 in the first round with a teacher, and on the way to 0 after the last one.
    """
    if config.distil_schedule == "constant":
        return 1.0
    c = config
    begins = [c.warmup + 1] if c.sparsity != 0.0 else []
    begins += [c.reduce_round] if c.reduce and c.reduce_round is not None else []
    first = 1 if c.teacher else min(begins)
    return 1.0 - (round_ - first) / (c.rounds - first + 1)


RIDER = Rider(
    "clients learn from the model before it was pruned, or another run's (--distil, --teacher)",
    wanted=distils,
    memory=Memory,
    keep=_kept,
    along=teaching,
)
