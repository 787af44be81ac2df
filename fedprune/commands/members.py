"""Who a run's model was trained on, and whether an attack tells: clients' rows, shadow models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

import numpy as np
from torch import nn

from fedprune.attacks.membership import Flags, confidences, lira
from fedprune.attacks.roc import Sides
from fedprune.attacks.shadows import halves, pooled_parts, rows
from fedprune.client.tokens import read_with
from fedprune.commands.subject import Subject
from fedprune.config import RunConfig, with_values
from fedprune.config.rates import learning_rate
from fedprune.learning.local_training import tune
from fedprune.learning.steps import step_batches
from fedprune.privacy.noise import Floats
from fedprune.protocol.models import shaped
from fedprune.randomness import generator, seeded
from fedprune.server.rows import Row
from fedprune.tasks.task import Part, examples
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import masked


@dataclass(frozen=True)
class People:
    """The examples that a run's model was trained on, and others from the same clients."""

    members: list[Part]  # training rows of every client that was in a cohort
    others: list[Part]  # test rows of all clients


def people_of(looked: Subject, rounds: Iterable[Row]) -> People:
    """Members and others of a run."""
    c, task = looked.config, looked.task
    trained = {p for row in rounds for p in row.get("cohort") or ()} or set(range(c.clients))
    shards = read_with(looked.edits, task, dict(enumerate(task.shards(c))))
    members = [s.train for p, s in shards.items() if p in trained and examples(s.train)]
    return People(members, [s.test for s in shards.values() if examples(s.test)])


def by_threshold(looked: Subject, people: People) -> Sides:
    """How sure the model is of members and of others (Yeom et al. 2018, arXiv 1709.01604)."""
    members, others = (
        np.concatenate([confidences(looked.model, looked.task, part) for part in parts])
        for parts in (people.members, people.others)
    )
    return members, others


def by_shadows(
    looked: Subject, people: People, shadows: int, tick: Callable[[], None] = lambda: None
) -> Sides:
    """LiRA (offline) against the run's model, by models that are trained here.

    Each is trained on a random half of members and others, from an initialisation of its own, with
    the run's shape, mask, optimizer, learning rates and number of steps, a cohort's batches at a
    time. So it is no federated run, its mask is not its own, and it saw no noise: nearer shadows
    could find more.

    `shadows`: how many; even, from 6.

    Raises:
        ValueError: too few shadows, an odd number, or rows that do not fit together.
    """
    pool = pooled_parts([*people.members, *people.others])
    inside = halves(shadows, examples(pool), looked.config.seed)
    observed = confidences(looked.model, looked.task, pool)
    seen = np.stack([_shadow(looked, pool, inside[i], i, tick) for i in range(shadows)])
    scores = lira(observed, seen, inside)
    first = sum(map(examples, people.members))
    return scores[:first], scores[first:]


def _shadow(
    looked: Subject, pool: Part, chosen: Flags, which: int, tick: Callable[[], None]
) -> Floats:
    c = looked.config
    model, _ = shaped(with_values(c, {"seed": c.seed + 1 + which}), looked.edits)
    _train(model, rows(pool, chosen), looked, which)
    tick()
    return confidences(model, looked.task, pool)


def _train(model: nn.Module, part: Part, looked: Subject, which: int) -> None:
    c, masks = at_once(looked.config, examples(part)), looked.masks or {}
    load_into(model, masked(state_of(model), masks))
    for round_ in range(1, c.rounds + 1):
        steps = step_batches(part, c, generator(c.seed, "shadow batches", which, round_))
        with seeded(c.seed, "shadow dropout", which, round_):
            tune(model, masks, steps, looked.task, learning_rate(c, round_), c)


def at_once(config: RunConfig, count: int) -> RunConfig:
    """The configuration for one who has a cohort's data: a client's steps, a cohort's batches."""
    c = config
    batch = c.batch_size * c.accumulate
    steps = c.local_steps or c.local_epochs * ceil(count / c.clients / batch)
    changes = {"local_steps": steps, "local_epochs": 0, "accumulate": 1}
    return with_values(c, {**changes, "batch_size": batch * c.cohort})
