"""The client's half of training: from a question and a private shard to one summand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fedprune.client.context import ClientContext
from fedprune.client.dp_sgd import noisy_steps, poisson_steps
from fedprune.client.exchange import exchanging, extruding
from fedprune.client.own_masks import own_pruning
from fedprune.client.personal import keep_own, selected_of, shared_flags
from fedprune.client.probing import cleared
from fedprune.client.teacher import distillation_of
from fedprune.client.thresholds import answer_thresholds
from fedprune.learning.averaging import flat_change
from fedprune.learning.local_training import Backward, Done, Tuned
from fedprune.learning.manners import in_turns, manner_of, one_manner
from fedprune.learning.steps import can_be_alone, step_batches, steps_taken
from fedprune.learning.variates import correction
from fedprune.options.refusal import Refused
from fedprune.protocol.choice import first_parts
from fedprune.protocol.form import fitting
from fedprune.protocol.forms import collects
from fedprune.protocol.limits import source_for
from fedprune.protocol.messages import Answer, Question
from fedprune.randomness import generator, seeded
from fedprune.scores.catalog import scores_of
from fedprune.scores.score import Watcher
from fedprune.selection.units import unit_labels
from fedprune.tasks.task import Part
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.models import learning, state_of
from fedprune.tensors.named import Masks, Tensors, gathered, on_cpu


@dataclass
class _Counted:
    """What takes a step's gradients, and how often it did."""

    backward: Backward
    calls: int = 0

    def __call__(self, step: list[Part]) -> Done:
        self.calls += 1
        return self.backward(step)


def answer_tune(question: Question, client: ClientContext) -> Answer:
    """What a client's training changed, and its own mask where it has one."""
    c = client.config
    with seeded(c.seed, DROPOUT, question.round, client.partition):
        if question.regime.alone:
            run = partial(_trained, question, client, question.masks)
            those = _steps(question, client, {})[0]
            return answer_thresholds(question, client, lambda how: run(those, manner=how))
        if question.grow:
            steps = list(_steps(question, client, {})[0])
            masks, tuned = exchanging(question, client, steps, partial(_trained, question, client))
            votes: Tensor | None = gathered(masks, {})
        else:
            masks, votes = starting_masks(question, client)
            tuned = _trained_once(question, client, masks)
    state = state_of(client.model)
    state = state if client.device.type == "cpu" else on_cpu(state)
    if question.regime.personal == "selected":
        keep_own(question, client.memory, state)
        votes = shared_flags(question, client.memory)
    return tuned_answer(question, client, (masks, votes), tuned, state)


def _trained_once(question: Question, client: ClientContext, masks: Masks) -> Tuned:
    """What comes of all of a client's steps under masks, which leave it in the model."""
    c = client.config
    steps, backward = _steps(question, client, {n: m.to(client.device) for n, m in masks.items()})
    noisy = None if backward is None else _Counted(backward)
    further = {"watch": _watch(question, client), **_corrected(question, client, masks)}
    further |= _trained_so(question, client)
    with extruding(question, client):
        tuned = _trained(question, client, masks, steps, backward=noisy, **further)
    if noisy is not None and noisy.calls != c.local_steps:
        given = f"{noisy.calls} of {c.local_steps} steps took their gradients by `backward`"
        raise Refused("train", f"{given}: --dp example hides examples in these alone")
    return tuned


def _trained(
    question: Question,
    client: ClientContext,
    masks: Masks,
    steps: Iterable[list[Part]],
    **further: Any,
) -> Tuned:
    """What comes of a client's steps under masks, which leave it in the model."""
    tuned = client.train(
        client.model,
        {name: m.to(client.device) for name, m in masks.items()},
        (list(client.moved(iter(step))) for step in steps),
        client.task,
        question.lr,
        client.config,
        called=client.tuned,
        units=units_of(client),
        distillation=distillation_of(question, client.config, client.teacher),
        **further,
    )
    if not isinstance(tuned, Tuned):
        raise TypeError(f"train gives a {type(tuned).__name__}; allowed: Tuned(loss, count)")
    return tuned


DROPOUT = "dropout"  # What a client's random numbers are for while it tunes


def starting_masks(question: Question, client: ClientContext) -> tuple[Masks, Tensor | None]:
    """The mask that a client tunes under, and as flags if it is its own: the model is pruned."""
    if question.score and client.config.masks != "global":
        return own_pruning(question, client)
    masks = question.masks
    if question.regime.whole:
        return {n: torch.ones_like(m) for n, m in masks.items()}, None
    return masks, None


def _trained_so(question: Question, client: ClientContext) -> dict[str, Any]:
    """What training takes beside the rest where it is not the plain way."""
    regime, layout = question.regime, client.layout
    if regime.plain:
        return {}
    parts = first_parts(regime.widths, question.masks, question.weights, client.config, layout)
    there = [{n: m.to(client.device) for n, m in part.items()} for part in parts]
    gen = generator(client.config.seed, "widths", question.round, client.partition)
    manner = manner_of(regime, client.model, layout.prunable, there, gen)
    if regime.personal == "selected":
        own = selected_of(question, client.memory)
        if any(bool(m.any()) for m in own.values()):
            mine = {n: m.to(client.device) for n, m in own.items()}
            manner = one_manner([manner, in_turns(learning(client.model), mine)])
    return {"manner": manner}


def tuned_answer(
    question: Question,
    client: ClientContext,
    under: tuple[Masks, Tensor | None],
    tuned: Tuned,
    state: Tensors,
) -> Answer:
    """A client's summand once it has tuned under masks to a state, which is on the CPU."""
    masks, votes = under
    change = (state, question.weights, question.changed_on, client.layout)
    values = flat_change(*change, question.whole)
    statistics = None
    if tuned.statistics is not None:
        kept = {} if question.dense else question.masks
        sums = tuned.statistics if question.dense else cleared(tuned.statistics, masks)
        statistics = gathered(sums, fitting(shapes_of(sums), kept)).float()
    totals: dict[str, float] = {"loss": tuned.loss, "count": tuned.count}
    if tuned.divergence is not None:
        totals["divergence"] = tuned.divergence
    return Answer(values, float(client.task.labels(client.shard.train)), totals, votes, statistics)


VARIATE = "variate"  # What a client remembers for SCAFFOLD


def _corrected(question: Question, client: ClientContext, masks: Masks) -> dict[str, Any]:
    """What training takes beside the rest where control variates correct it."""
    if not client.config.scaffold:
        return {}
    own = client.memory.recall(VARIATE)
    found = correction(question.given, own, masks)
    return {"correction": {n: t.to(client.device) for n, t in found.items()}}


def _steps(
    question: Question, client: ClientContext, masks: Masks
) -> tuple[Iterator[list[Part]], Backward | None]:
    """The batches of every step, and what takes their gradients where noise hides examples."""
    c, part = client.config, client.shard.train
    if c.dp != "example":
        gen, alone = batch_draws(question, client)
        steps = step_batches(part, c, gen, alone=alone)
        if question.regime.steps < 1.0:
            steps = islice(steps, steps_taken(c.local_steps, question.regime.steps))
        return steps, None
    draws, noise = (
        source_for(question, c, client.partition, what) for what in ("examples", "noise")
    )
    return poisson_steps(part, c.local_steps, c.dp_rate or 0.0, draws), noisy_steps(
        client.model, client.task, masks, c, c.batch_size, noise, client.said
    )


def batch_draws(question: Question, client: ClientContext) -> tuple[torch.Generator, bool]:
    """What draws a client's batches in a round, and whether a row may be alone in one."""
    c = client.config
    gen = generator(c.seed, "batches", question.round, client.partition)
    return gen, can_be_alone(client.model)


def units_of(client: ClientContext) -> Tensors:
    """The units of a group lasso, by number; nothing without one."""
    c = client.config
    if not c.group_lasso:
        return {}
    origin = client.layout.origin
    if origin is None:
        return dict(unit_labels(client.layout, c.unit, c.unit_shape))  # needed in every step
    # Of the model before the cut: what was cut out of it may be the last of its kind.
    return client.layout.from_origin(dict(unit_labels(origin.layout, c.unit, c.unit_shape)))


def _watch(question: Question, client: ClientContext) -> AbstractContextManager[Watcher] | None:
    """What collects the score's statistic while the client tunes, where that is asked."""
    if not collects(question, client.config):
        return None
    watch = scores_of(client.config.plugin)[question.score].asks[0].watch
    assert watch is not None  # the configuration refuses a score without one
    return watch(client.model, client.layout, client.layout.prunable)
