"""What `scores.py` scores: a model, its task and a shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fedprune.config import configure
from fedprune.randomness import generator
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.task import Loss, Part

LENGTH, SYMBOLS, SIDE = 64, 64, 28


@dataclass(frozen=True)
class Subject:
    """A model, its loss, examples for it, and the kind of unit that ablation removes."""

    model: nn.Module
    layout: Layout
    loss: Callable[[nn.Module, Part], Loss]
    part: Part
    unit: str


def llama(examples: int) -> Subject:
    gen = generator(0, "text")
    tokens = torch.randint(SYMBOLS, (examples, LENGTH + 1), generator=gen)
    part = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
    return subject_of("shakespeare", part, "head")


def cnn(examples: int) -> Subject:
    gen = generator(0, "images")
    part = {
        "images": torch.randn(examples, 1, SIDE, SIDE, generator=gen),
        "labels": torch.randint(10, (examples,), generator=gen),
    }
    return subject_of("fashion-mnist", part, "row")


def subject_of(task: str, part: Part, unit: str) -> Subject:
    config = configure({"task": task, "engine": "inline"})
    model = TASKS[task].model(config)
    output = TASKS[task].output
    heads = output if isinstance(output, tuple) else output(model)
    return Subject(model, layout_of(model, output=heads), TASKS[task].loss, part, unit)


SUBJECTS: dict[str, Callable[[int], Subject]] = {"llama": llama, "cnn": cnn}
