"""Operations of a client for a question, as the simulated clock counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from fedprune.config import RunConfig, with_values
from fedprune.learning.preparation import recomputing
from fedprune.learning.steps import examples_trained_on, steps_taken
from fedprune.protocol.messages import Question
from fedprune.scores.catalog import scores_of
from fedprune.scores.score import FORWARDS_OF_A_STEP, Statistic, forwards_of
from fedprune.server.plan import Plan
from fedprune.structure.flops import Passes, passes_of
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import Part
from fedprune.tensors.named import kept_in


def work_for(question: Question, labels: float, plan: Plan, steps: float = 1.0) -> float:
    """Floating-point operations of a client with so many labels for a question.

    Of all matrix products and convolutions of the model as it is now, zeros included: only what is
    cut out is saved (`fedprune.structure.flops.Passes`). 0 where no devices are simulated, or the
    task has no example to count on. What a teacher, an optimizer or a mask takes is not in it.
    Labels are of the client's training part; to compare models, of its validation part. `steps` is
    the part of its steps that the client takes.
    """
    task = tasks_of(plan.config.plugin)[plan.config.task]
    if plan.dummy is None or plan.passes is None:
        return 0.0
    examples = labels / max(1, task.labels(plan.dummy))
    return _operations(question, examples, plan, plan.passes, steps)


def passes_for(
    config: RunConfig, model: nn.Module, dummy: Part | None, positions: Mapping[str, float]
) -> Passes | None:
    """Operations of one example, where devices are simulated and there is one.

    Of what torch cannot count, as a model that is read a block at a time, those of its prunable
    layers, and twice as many back (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
    """
    if not config.profiles or dummy is None or not positions:
        return None
    task = tasks_of(config.plugin)[config.task]
    try:
        if config.checkpointing:
            recomputing(model)
        return passes_of(model, dummy, lambda m: task.loss(m, dummy).total)
    except Exception:
        sizes = {n: p.numel() for n, p in model.named_parameters()}
        forward = sum(2.0 * sizes[n] * rows for n, rows in positions.items())
        return Passes(forward, 2.0 * forward)


def _operations(question: Question, examples: float, plan: Plan, of: Passes, part: float) -> float:
    c, kind = plan.config, question.kind
    scored = min(examples, float(c.score_examples or examples))
    asks = scores_of(c.plugin)[question.score or c.score].asks
    if kind == "tune":
        fewer = {} if part == 1.0 else {"local_steps": steps_taken(c.local_steps, part)}
        steps = of.both * examples_trained_on(round(examples), with_values(c, fewer))
        grown = of.both * scored if question.grow == "gradient" else 0.0
        asks = asks if question.score and c.masks != "global" else ()
        return steps + grown + scored * sum(_of_statistic(a, question, plan, of) for a in asks)
    if kind == "score":
        return scored * _of_statistic(asks[question.ask], question, plan, of)
    if kind == "own":
        return scored * sum(_of_statistic(a, question, plan, of) for a in asks)
    if kind == "compare":
        return of.forward * examples * max(1, len(question.candidates))
    return of.forward * examples * _PASSES_OF.get(kind, 0.0)


_PASSES_OF = {"inputs": 1.0, "magnitudes": 1.0, "signals": 1.0, "outputs": 2.0}
"""Of questions about inputs of layers; who counts labels or tokens computes nothing."""


def _of_statistic(ask: Statistic, question: Question, plan: Plan, of: Passes) -> float:
    """Operations of a statistic for one example; of single weights, for those that are left."""
    c, names = plan.config, question.names or plan.layout.prunable
    shapes, masks = ask.shapes(plan.layout, names, c.unit, c.probes or 0), question.masks
    own = {n: s for n, s in shapes.items() if n in masks and masks[n].shape == s}
    numbers = sum(s.numel() for n, s in shapes.items() if n not in own)
    passes = forwards_of(ask, numbers + sum(kept_in(masks[n], masks[n]) for n in own))
    beside = ask.products(plan.positions, shapes) if ask.products else 0.0
    if passes == FORWARDS_OF_A_STEP:
        back = min(of.backward, 2.0 * of.forward)  # who only scores computes nothing again
        return of.forward + _back_to(names, plan) * back + beside
    return passes * of.forward + beside


def _back_to(names: Sequence[str], plan: Plan) -> float:
    """The part of a backward pass that the gradients of some tensors take.

    It ends at the first of them, and takes no gradient of the other weights.
    """
    of = {n: plan.layout.shapes[n].numel() * rows for n, rows in plan.positions.items()}
    order = plan.layout.prunable
    passed = order[min(order.index(n) for n in names) :]
    return sum(of[n] for n in (*names, *passed)) / max(1.0, 2.0 * sum(of.values()))


def client_seconds(
    p: int, question: Question, sizes: tuple[float, float], plan: Plan, labels: float
) -> float:
    """Seconds of a client: to receive, compute, and send."""
    its = plan.fleet[p]
    part = plan.parts[p] if plan.parts and question.kind == "tune" else 1.0
    work = part * work_for(question, labels, plan, plan.steps[p] if plan.steps else 1.0)
    return sizes[0] / its.down + work / its.flops + sizes[1] / its.up
