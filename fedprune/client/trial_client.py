"""A throw-away client: a copy of the model, a few examples, and one step of everything."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.config import RunConfig
from fedprune.learning.local_training import Train
from fedprune.learning.options import trains
from fedprune.protocol.checks import check_summand
from fedprune.protocol.form import LARGEST_NUMBER
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.streaming.blocks import is_streamed
from fedprune.streaming.packed import masks_for
from fedprune.structure.layout import Layout
from fedprune.tasks.task import Part, Shard, Task
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Tensors, on_cpu

EXAMPLES_TRIED = 4  # How many of a partition's examples are tried
FEW_TRIED = 2  # How many of them where the model is large


@dataclass(frozen=True)
class TrialClient:
    """A throw-away client."""

    client: ClientContext  # a copy of the model and a few examples
    weights: Tensors  # of the model as it is before round one
    others: Mapping[int, Shard]  # shards of other partitions, for layers that few examples reach

    def question(self, kind: str, **what: Any) -> Question:
        """A question about the model as it is."""
        masks = masks_for(self.weights, self.client.layout.prunable)
        return Question(kind, 1, self.weights, masks, **what)


def answered_in_trial(trial: TrialClient, question: Question) -> Answer:
    """What the trial answers, if it is what a server would take."""
    c, client = trial.client.config, trial.client
    given = answer(question, client)
    form = replace(form_of(question, c, client.layout), weighed=True)
    if c.dp != "none":  # totals that stay with a client are taken out when its answer leaves it
        form = replace(form, totals=frozenset(given.totals), noisy=True)
    if c.dp != "none" or question.kind == "tune":  # a rate that is too high fails in its rounds
        form = replace(form, within=(-LARGEST_NUMBER, LARGEST_NUMBER), positive=False)
    check_summand(given.values, given.weight, given.totals, form, given.statistics)
    return given


def trial_client(
    task: Task,
    config: RunConfig,
    model: nn.Module,
    layout: Layout,
    shards: Mapping[int, Shard],
    partition: int,
    train: Train,
    held: Tensors | None = None,
) -> TrialClient:
    """A client on the first examples of a partition, with a model and settings of its own.

    Of weights that are held elsewhere the model is no copy: it is to get them back.
    """
    shard = shards[partition]
    n = FEW_TRIED if takes_long(layout) else EXAMPLES_TRIED
    few = Shard(*(_first(part, n) for part in (shard.train, shard.validation, shard.test)))
    alone = held is not None or is_streamed(model)  # nobody writes to what is read
    own = model if alone else copy.deepcopy(model)
    device = next(own.parameters()).device
    where = (partition, few, own, task, _brief(config), layout, device, own)
    client = ClientContext(*where, train=train, lends=held is None)
    return TrialClient(client, on_cpu(state_of(model)) if held is None else held, shards)


def takes_long(layout: Layout) -> bool:
    """Whether an example takes seconds and much memory."""
    return layout.parameters >= 10**8


def _first(part: Part, n: int) -> Part:
    return {name: t[:n] for name, t in part.items()}


def _brief(config: RunConfig) -> RunConfig:
    """The configuration with one step of a few examples, and as few probes as there can be."""
    steps = int(trains(config))
    changes: dict[str, Any] = {"local_steps": steps, "local_epochs": 0, "accumulate": 1}
    changes |= {"batch_size": EXAMPLES_TRIED, "compile": False}
    changes |= {"probes": None if config.probes is None else 2}
    return config.model_copy(update=changes)
