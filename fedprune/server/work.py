"""Operations of a client for a question, as the simulated clock counts them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedprune.config import with_values
from fedprune.learning.steps import examples_trained_on, steps_taken
from fedprune.protocol.messages import Question
from fedprune.scores.catalog import scores_of
from fedprune.scores.score import FORWARDS_OF_A_STEP, Statistic, forwards_of
from fedprune.server.plan import Plan
from fedprune.tasks.catalog import tasks_of
from fedprune.tensors.named import kept_in


def work_for(question: Question, labels: float, plan: Plan, steps: float = 1.0) -> float:
    """Floating-point operations of a client with so many labels for a question.

    Those of the prunable layers as they are now, zeros included: only what is cut out is saved
    (`fedprune.structure.flops`). 0 where the task has no example to count them on. What a teacher
    computes, and what an optimizer or a mask takes, is not in it.

    Args:
        question: what is asked.
        labels: of the client's training part; to compare models, of its validation part.
        plan: of the model as it is.
        steps: part of its steps that the client takes.
    """
    task = tasks_of(plan.config.plugin)[plan.config.task]
    if plan.dummy is None or not plan.positions:
        return 0.0
    examples = labels / max(1, task.labels(plan.dummy))
    return _forward(plan) * _passed(question, examples, plan, steps)


def _forward(plan: Plan, names: Collection[str] = ()) -> float:
    """Operations of a forward pass of one example, in all layers or those of some tensors."""
    of = {n: 2.0 * plan.layout.shapes[n].numel() * rows for n, rows in plan.positions.items()}
    return sum(of[n] for n in names or of)


def _passed(question: Question, examples: float, plan: Plan, part: float) -> float:
    """Forward passes of one example that a client takes, a backward pass as two of them."""
    c, kind = plan.config, question.kind
    scored = min(examples, float(c.score_examples or examples))
    asks = scores_of(c.plugin)[question.score or c.score].asks
    if kind == "tune":
        fewer = {} if part == 1.0 else {"local_steps": steps_taken(c.local_steps, part)}
        steps = FORWARDS_OF_A_STEP * examples_trained_on(round(examples), with_values(c, fewer))
        grown = FORWARDS_OF_A_STEP * scored if question.grow == "gradient" else 0.0
        own = bool(question.score) and c.masks != "global"
        return steps + grown + own * scored * sum(_forwards(a, question, plan) for a in asks)
    if kind == "score":
        return scored * _forwards(asks[question.ask], question, plan)
    if kind == "own":
        return scored * sum(_forwards(ask, question, plan) for ask in asks)
    if kind == "compare":
        return examples * max(1, len(question.candidates))
    return examples * _PASSES_OF.get(kind, 0.0)


_PASSES_OF = {"inputs": 1.0, "magnitudes": 1.0, "signals": 1.0, "outputs": 2.0}
"""Of questions about inputs of layers; who counts labels or tokens computes nothing."""


def _forwards(ask: Statistic, question: Question, plan: Plan) -> float:
    """Forward passes of a statistic, and its products in such; of single weights, those left."""
    c, names = plan.config, question.names or plan.layout.prunable
    shapes, masks = ask.shapes(plan.layout, names, c.unit, c.probes or 0), question.masks
    own = {n: s for n, s in shapes.items() if n in masks and masks[n].shape == s}
    numbers = sum(s.numel() for n, s in shapes.items() if n not in own)
    passes = forwards_of(ask, numbers + sum(kept_in(masks[n], masks[n]) for n in own))
    if passes == FORWARDS_OF_A_STEP and question.names:
        passes = 1.0 + _back_to(names, plan)
    beside = ask.products(plan.positions, shapes) if ask.products else 0.0
    return passes + beside / max(1.0, _forward(plan))


def _back_to(names: Sequence[str], plan: Plan) -> float:
    """A backward pass for the gradients of some tensors, in forward passes.

    It ends at the first of them, and takes no gradient of the other weights.
    """
    order = plan.layout.prunable
    passed = order[min(order.index(n) for n in names) :]
    return (_forward(plan, names) + _forward(plan, passed)) / max(1.0, _forward(plan))


def client_seconds(
    p: int, question: Question, sizes: tuple[float, float], plan: Plan, labels: float
) -> float:
    """Seconds of a client: to receive, compute, and send."""
    its = plan.fleet[p]
    part = plan.parts[p] if plan.parts and question.kind == "tune" else 1.0
    work = part * work_for(question, labels, plan, plan.steps[p] if plan.steps else 1.0)
    return sizes[0] / its.down + work / its.flops + sizes[1] / its.up
