"""Distillation: the teacher that a run keeps, and what clients are told of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedprune.client.teacher import distils
from fedprune.codec.coded_file import to_coded
from fedprune.codec.wire import digest_of
from fedprune.config import RunConfig
from fedprune.protocol.origin import origin_of
from fedprune.server.state import Plan, State


def with_teacher_kept(state: State, plan: Plan) -> State:
    """The state with its model kept as the teacher, before it is pruned or reduced at first."""
    c = plan.config
    if state.teacher or plan.teacher or not distils(c):
        return state
    return replace(state, teacher=to_coded(origin_of(c, state.edits), state.weights, state.masks))


def teaching(state: State, plan: Plan) -> dict[str, Any]:
    """What a question to tune says about the teacher; nothing where there is none yet."""
    teacher = plan.teacher or state.teacher
    if not teacher or not distils(plan.config):
        return {}
    has = frozenset(p for p, held in state.taught.items() if held == digest_of(teacher))
    return {"teacher": teacher, "distil": factor(plan.config, state.round), "taught": has}


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
