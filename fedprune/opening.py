"""What a run begins with: the state before round one and the plan of the dense model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedprune.adapters.beginning import begun_adapters, frozen_for
from fedprune.client.teacher import check_distillation, teacher_in
from fedprune.config import RunConfig
from fedprune.config.streamed import only_reads
from fedprune.methods.acting import begun
from fedprune.methods.catalog import client_parts, method_of
from fedprune.methods.measuring import described
from fedprune.options.refusal import ConfigError
from fedprune.protocol.broadcast import broadcast
from fedprune.protocol.held_weights import base_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.models import dense_model, layout_for
from fedprune.protocol.parts import encode_answer
from fedprune.protocol.port import Port
from fedprune.records.previous import (
    PreviousRun,
    continued,
)
from fedprune.server.fleet import fleet_of
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.shrink import fitted
from fedprune.server.state import State, first_state
from fedprune.server.work import check_fleet, fitted_tiers, passes_for
from fedprune.structure.flops import flops, positions_of
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.metrics import naive_of
from fedprune.tasks.task import Part, output_of
from fedprune.tensors.models import empty_out, load_into
from fedprune.tensors.named import count_kept

log = logging.getLogger("fedprune")


def opening_of(
    config: RunConfig,
    weights: Mapping[str, Tensor] | None,
    before: PreviousRun | None,
    resident: nn.Module | None = None,
) -> tuple[State, Plan]:
    """The state before round one, and the plan of the dense model.

    Args:
        config: complete configuration.
        weights: to begin with, instead of the model's own.
        before: the run that this one goes on from.
        resident: a model like it to compute with; by default this one.
    """
    # Where nobody trains, the resident model is as it was built.
    untouched = resident is not None and weights is None and only_reads(config)
    model = resident if resident is not None and untouched else dense_model(config)
    base = base_of(config, model)
    if weights is not None:
        load_into(model, weights)
    layout = layout_for(config, model)
    held = base.weights if base is not None and weights is None else None
    fresh = first_state(model, layout, held)
    positions = positions_for(config, model, layout)
    whole = flops(fresh.masks, positions) if positions else 0.0
    passes = passes_for(config, model, dummy_of(config), positions)
    packet = dense_packet(layout)
    teacher, own = teacher_of(config, model), resident or model
    if resident is None and config.adapters == "none":
        empty_out(own)
    plan = Plan(config, layout, packet, own, dummy_of(config), positions, flops_dense=whole)
    plan = replace(plan, teacher=teacher, base=base, fleet=fleet_of(config), passes=passes)
    if before is None:
        return _fitting(*adapted_state(fresh, plan, model))
    state = continued(config, before)
    start = (layout.whole - count_kept(state.masks)) / layout.whole
    if config.sparsity and config.sparsity < start:
        raise ConfigError(
            f"sparsity={config.sparsity}: {config.init} has {start:.6g} already, and density does "
            f"not rise; allowed: 0 (prune no further), {start:.6g} to 1"
        )
    return _fitting(*adapted_state(state, replace(plan, start=start), model))


def _fitting(state: State, plan: Plan) -> tuple[State, Plan]:
    """The same with what each simulated device has, if enough have the memory for it."""
    if plan.fleet and plan.config.budget != "none":
        whole = method_of(plan.config).whole
        plan = fitted_tiers(state.model, plan, client_parts(plan.config), whole=whole)
    check_fleet(state.model, plan)
    return begun(state, Round(0, plan)), plan  # methods refuse models that they do not go with


def adapted_state(state: State, plan: Plan, model: nn.Module) -> tuple[State, Plan]:
    """The state with adapters, and the plan with the weights that are frozen beside them.

    As they were, where the configuration wants none.
    """
    c = plan.config
    if c.adapters == "none":
        return state, plan
    if state.edits and c.sparsity != 0.0 and c.shrink != "never":
        why = f"parts of the model of {c.init} were cut out before its adapters began"
        raise ConfigError(f"shrink={c.shrink!r}: {why}; allowed: never, or --adapters none")
    cut = fitted(plan, state.edits)
    model = cut.model if state.edits and cut.model is not None else model
    output = output_of(tasks_of(c.plugin)[c.task], model)
    held = plan.base is not None and state.weights is plan.base.weights
    frozen = state.weights if held else frozen_for(c, model, cut.layout, state.weights)
    adapters = begun_adapters(c, model, output, cut.layout, frozen, c.seed)
    begun = replace(state.model, weights=dict(frozen), adapters=adapters)
    return replace(state, model=begun), replace(plan, frozen=frozen)


def teacher_of(config: RunConfig, model: nn.Module) -> bytes:
    """Another run's model to learn from, if there is one; refused before anything starts.

    Raises:
        ConfigError: it cannot be had, or there is nothing to learn from it.
    """
    try:
        teacher = teacher_in(config.teacher, config.plugin) if config.teacher else b""
        check_distillation(config, model, teacher)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return teacher


def without_model(state: State, plan: Plan, port: Port) -> tuple[State, dict[str, float]]:
    """What the commonest label, or the labels' frequencies, reach: it gives a number its meaning.

    From sums over the labels of everyone's training and test parts (counts, or those of
    `Task.naive`); empty where a task has none.
    """
    config = plan.config
    naive = naive_of(tasks_of(config.plugin)[config.task])
    if naive is None or (config.dp != "none" and not config.panel):
        return state, {}
    asked, aggregate = described(state, Round(0, plan), port)
    if aggregate.total is None:
        why = aggregate.failures[0].reason if aggregate.failures else "nobody answered"
        log.warning(
            "without what the commonest label reaches: no client counted its labels: %s", why
        )
        return state, {}
    test, train = aggregate.total.split(aggregate.total.numel() // 2)
    # A client that cannot answer now is asked again in every round, and counted there.
    return unfailed(asked), dict(naive.reached(train, test, config))


def unfailed(state: State) -> State:
    """The state without failures from before round one."""
    return replace(state, book=replace(state.book, failures=(), failed=0))


def dummy_of(config: RunConfig) -> Part | None:
    """One example without data in it, where the task has one."""
    dummy = tasks_of(config.plugin)[config.task].dummy
    return None if dummy is None else dummy(config)


def positions_for(config: RunConfig, model: nn.Module, layout: Layout) -> Mapping[str, float]:
    """How many rows each prunable layer sees in one example; nothing without a dummy."""
    task, dummy = tasks_of(config.plugin)[config.task], dummy_of(config)
    if dummy is None:
        return {}
    try:
        return positions_of(model, layout, dummy, task.loss)
    except Exception:  # a loss of the user's own that fails is for the clients to report
        if config.target_flops is not None:
            raise
        return {}


def dense_packet(layout: Layout) -> tuple[int, int]:
    """Bytes of one dense fp32 tuning question and of its answer."""
    question = Question("tune", 1, {}, {}, lr=1.0, known=frozenset([0]))
    answer = Answer(torch.empty(0), 1.0, {"loss": 1.0, "count": 1.0})
    # The values are not encoded to be weighed: each takes four bytes.
    values = 4 * sum(s.numel() for s in layout.shapes.values())
    down, up = broadcast(question, "fp32").size([0]), encode_answer(answer, question, "fp32").size()
    return down + values, up + values
