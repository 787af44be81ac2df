"""Which round's model is the result, and when an arm has waited long enough for a better one."""

from __future__ import annotations

from dataclasses import replace

from fedprune.config import RunConfig
from fedprune.methods.acting import done
from fedprune.methods.catalog import riders_of
from fedprune.methods.measuring import outcome
from fedprune.server.plan import Plan
from fedprune.server.rows import Row
from fedprune.server.state import Best, State


def with_best(state: State, before: State, plan: Plan, told: Row) -> State:
    """The state with the best round so far, after one more.

    Better is what has more weights removed, or as many and a lower loss on validation. A round
    counts that was completed, and measured by everyone who was to measure.
    """
    c, loss = plan.config, told["loss"]
    if c.save == "last" and not c.patience:
        return state
    lost = any(f["phase"] == "evaluate" for f in told["failures"])
    if loss is None or lost or state.completed == before.completed:
        return state
    best, rank = state.best, (-told["sparsity"], loss)
    if best is not None and rank >= (-best.sparsity, best.loss):
        return replace(state, best=replace(best, waited=best.waited + 1))
    model = outcome(state, c) if c.save == "best" else None
    return replace(state, best=Best(state.round, loss, told["sparsity"], 0, model))


def waited_enough(state: State, plan: Plan) -> bool:
    """Whether all was pruned that was to be, and so many measurements brought nothing better."""
    best, patience = state.best, plan.config.patience
    if not patience or best is None or best.waited < patience:
        return False
    return done(state, plan)


def resulting(end: State, config: RunConfig) -> State:
    """The last state of an arm, with the model of its best round where that is the result."""
    if config.save == "last" or end.best is None or end.best.model is None:
        return end
    averaging = {name for name, rider in riders_of(config).items() if rider.outcome}
    memories = {n: m for n, m in end.memories.items() if n not in averaging}
    return replace(end, model=end.best.model, memories=memories)
