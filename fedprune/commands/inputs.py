"""Sums of inputs and quality of a model, asked as a run asks: every partition, sums added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.client.tokens import read_with
from fedprune.commands.subject import Subject
from fedprune.export.measure import Forward
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.redundancy.moments import Inputs, inputs_from, measurable, questions, together
from fedprune.server.rows import quality
from fedprune.structure.layout import Layout
from fedprune.tasks.task import Shard
from fedprune.tensors.models import state_of


def inputs_of_clients(looked: Subject, layout: Layout) -> Inputs:
    """Σ x xᵀ of every prunable layer over the training parts of all partitions.

    The shards are those of the subject's configuration: the same data, split and seed.
    """
    model, config, shards = looked.model, looked.config, looked.task.shards(looked.config)
    client, pieces = _client(looked, layout, shards[0]), []
    for names in questions(layout, measurable(model, layout)):
        question = Question("inputs", 0, state_of(model), {}, names=names)
        total = torch.zeros(form_of(question, config, layout).values, dtype=torch.float64)
        for partition, shard in enumerate(shards):
            total += answer(question, replace(client, partition=partition, shard=shard)).values
        pieces.append(inputs_from(form_of(question, config, layout).named(total), names))
    return together(pieces)


def quality_of(looked: Subject) -> dict[str, Any] | None:
    """Loss and what else the task measures, over all test parts.

    The shards are those of the subject's configuration: the same data, split and seed.
    """
    config, task = looked.config, looked.task
    question = Question("evaluate", 0, state_of(looked.model), {}, part="test")
    shards = read_with(looked.edits, task, dict(enumerate(task.shards(config))))
    # Nothing of it is read where only a loss is asked for.
    layout = Layout(shapes={}, prunable=(), spared=(), variances={}, kinds={})
    client = _client(looked, layout, shards[0])
    totals: dict[str, float] = {}
    for partition, shard in shards.items():
        given = answer(question, replace(client, partition=partition, shard=shard)).totals
        totals = {name: totals.get(name, 0.0) + value for name, value in given.items()}
    return quality(totals, config)


def _client(looked: Subject, layout: Layout, shard: Shard) -> ClientContext:
    where = (looked.model, looked.task, looked.config, layout, torch.device("cpu"), looked.model)
    return ClientContext(0, shard, *where)


def runner(forward: Forward) -> Callable[[nn.Module], Tensor]:
    """Runs a model of any precision on one input and gives back what it says."""

    def run(model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype

        def cast(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if floating else value

        args = tuple(cast(value) for value in forward.args)
        kwargs = {name: cast(value) for name, value in forward.kwargs.items()}
        out = Forward(args, kwargs).through(model)
        if isinstance(out, Tensor):
            return out
        said: Tensor = out.logits if hasattr(out, "logits") else out[0]
        return said

    return run
