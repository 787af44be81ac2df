"""How good a model is on the test split, asked as a run asks: every partition, sums added up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.client.tokens import read_with
from fedprune.commands.subject import Subject
from fedprune.protocol.messages import Question
from fedprune.server.rows import quality
from fedprune.structure.layout import Layout
from fedprune.tensors.models import state_of


def quality_of(looked: Subject) -> dict[str, Any] | None:
    """Loss and what else the task measures, over all test parts.

    The shards are those of the subject's configuration: the same data, split and seed.

    Raises:
        FileNotFoundError: the task's data is not here.
    """
    model, config, task = looked.model, looked.config, looked.task
    question = Question("evaluate", 0, state_of(model), {}, part="test")
    shards = read_with(looked.edits, task, dict(enumerate(task.shards(config))))
    # Nothing of it is read where only a loss is asked for.
    layout = Layout(shapes={}, prunable=(), spared=(), variances={}, kinds={})
    client = ClientContext(0, shards[0], model, task, config, layout, torch.device("cpu"), model)
    totals: dict[str, float] = {}
    for partition, shard in shards.items():
        given = answer(question, replace(client, partition=partition, shard=shard)).totals
        totals = {name: totals.get(name, 0.0) + value for name, value in given.items()}
    return quality(totals, config)
