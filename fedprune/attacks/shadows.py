"""Models to attack, and shadow models: many small trainings on halves of the same examples.

A plain loop in one process over the examples of all clients together: what is attacked is what a
model remembers, and averaging changes that less than the number of steps does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedprune.attacks.membership import Flags, confidences
from fedprune.config import RunConfig, with_values
from fedprune.learning.local_training import tune
from fedprune.learning.steps import step_batches
from fedprune.privacy.noise import Floats
from fedprune.protocol.models import dense_model, layout_for
from fedprune.randomness import generator, seeded
from fedprune.selection.select import select
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import Part, Shard, Task, examples
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, Tensors, copied, full_masks, masked

_Tick = Callable[[], None]  # Told that one more model is trained


@dataclass(frozen=True)
class Attacked:
    """Several models of one kind, and how sure each is of every example."""

    sparsity: float  # of the prunable weights; 0.0: dense
    confidence: Floats  # (models, examples)
    inside: Flags  # whether a model was trained on an example, (models, examples)
    # right answers on the examples inside and outside, means over the models; None for a task that
    # has no classes
    accuracy: tuple[float, float] | None


def pooled_parts(parts: Sequence[Part]) -> Part:
    """Parts as one; texts of different lengths, whose rows do not fit together, are refused."""
    first = parts[0]
    for name in first:
        shapes = {tuple(part[name].shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"{name}: rows of shapes {sorted(shapes)}; allowed: one shape for all")
    return {name: torch.cat([part[name] for part in parts]) for name in first}


def everything(shards: Sequence[Shard]) -> Part:
    """All examples of all shards, whatever part they are in."""
    return pooled_parts([part for s in shards for part in (s.train, s.validation, s.test)])


def halves(models: int, count: int, seed: int) -> Flags:
    """Who is trained on what, (models, examples): every example in exactly half of the models.

    So that each has as many shadow models without it as any other (as Carlini et al. 2022 do).

    Raises:
        ValueError: fewer than six models, or an odd number.
    """
    if models < 6 or models % 2:
        raise ValueError(f"models={models}: allowed: 6, 8, 10, ...")
    drawn = torch.rand(models, count, generator=generator(seed, "halves"))
    flags: Flags = (drawn.argsort(0) < models // 2).numpy()
    return flags


def rows(part: Part, chosen: Flags) -> Part:
    """The examples that are flagged."""
    return {name: t[torch.from_numpy(chosen)] for name, t in part.items()}


@dataclass(frozen=True)
class _Setting:
    """What trains: one model after another, in the same place."""

    config: RunConfig
    task: Task
    model: nn.Module
    layout: Layout


def _setting(config: RunConfig, which: int) -> _Setting:
    """A fresh dense model, with an initialisation of its own for every number."""
    seed = config.seed + 1 + which
    model = dense_model(with_values(config, {"seed": seed}))
    return _Setting(config, tasks_of(config.plugin)[config.task], model, layout_for(config, model))


def train_shadow(on: _Setting, part: Part, masks: Masks, which: int, stage: int) -> None:
    """Train the model in place under the masks for the configuration's epochs or steps."""
    config, gen = on.config, generator(on.config.seed, "shadow batches", which, stage)
    with seeded(config.seed, "shadow dropout", which, stage):
        tune(on.model, masks, step_batches(part, config, gen), on.task, config.lr, config)


def dense_and_pruned(
    config: RunConfig, sparsities: Sequence[float], models: int, tick: _Tick = lambda: None
) -> list[Attacked]:
    """Models of several sparsities, each from the same dense one, all trained for as long.

    A model is trained on its half of the examples; then, for every sparsity, its smallest weights
    go (the selection that runs use, globally by magnitude) and it is trained under the mask for as
    long again. Sparsity 0 is that without a mask, so that length of training is no difference.

    `models`: how many; even, from 6. `config`: task, model, optimizer, learning rate, batch size,
    epochs or steps of one stage.
    """
    pool = everything(tasks_of(config.plugin)[config.task].shards(config))
    inside = halves(models, examples(pool), config.seed)
    found: dict[float, list[tuple[Floats, Floats]]] = {s: [] for s in sparsities}
    for which in range(models):
        on = _setting(config, which)
        own = rows(pool, inside[which])
        train_shadow(on, own, full_masks(state_of(on.model), on.layout.prunable), which, 0)
        before = copied(state_of(on.model))
        for stage, sparsity in enumerate(sparsities, 1):
            masks = _pruned(on.layout, before, sparsity)
            load_into(on.model, masked(before, masks))
            train_shadow(on, own, masks, which, stage)
            found[sparsity].append((confidences(on.model, on.task, pool), _right(on, pool)))
        tick()
    return [_attacked(s, inside, both) for s, both in found.items()]


def _pruned(layout: Layout, weights: Tensors, sparsity: float) -> Masks:
    scores = {name: weights[name].abs() for name in layout.prunable}
    return select(scores, sparsity, layout=layout)


@torch.no_grad()
def _right(on: _Setting, part: Part) -> Floats:
    """1.0 for every example that is answered right; empty for a task without classes."""
    found = on.task.loss(on.model.eval(), part)
    if found.logits is None or found.logits.dim() != 2:
        return np.empty(0)
    right: Floats = (found.logits.argmax(1) == part["labels"]).double().numpy()
    return right


def _attacked(sparsity: float, inside: Flags, both: list[tuple[Floats, Floats]]) -> Attacked:
    confidence = np.stack([c for c, _ in both])
    right = np.stack([r for _, r in both])
    if not right.size:
        return Attacked(sparsity, confidence, inside, None)
    return Attacked(
        sparsity, confidence, inside, (float(right[inside].mean()), float(right[~inside].mean()))
    )
