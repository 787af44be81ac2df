"""What is learned: a model, a loss over batches, and one private shard per partition.

A new task is a `Task` value, no subclass: see ``docs/extending.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fedprune.tasks.options import Data
    from fedprune.tasks.owners import Population

T = TypeVar("T")

Part = dict[str, Tensor]
"""Examples: tensors that share their first dimension, one row an example."""


class _Later(Generic[T]):
    """A field that may be given as a function, which is called when the field is first read."""

    def __init__(self, default: T | Callable[[], T] | None = None, *, optional: bool = True):
        self.default, self.optional = default, optional

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, loss: Loss | None, owner: type) -> T:
        if loss is None:  # a dataclass asks its class for a default
            if not self.optional:
                raise AttributeError(self.name)
            return cast(T, self.default)
        value = loss.__dict__[self.name]
        if callable(value):
            loss.__dict__[self.name] = value = value()
        return cast(T, value)

    def __set__(self, loss: Loss, value: T | Callable[[], T]) -> None:
        loss.__dict__[self.name] = value


@dataclass(frozen=True)
class Loss:
    """Sums over one batch: they add up over batches, shards and clients.

    All but `total` and `logits` may be given as a function without arguments, which is called when
    it is first asked for: training reads no more than `total` and `count`.

    Attributes:
        total: scalar tensor with gradient, the loss summed over the counted labels.
        count: labels counted (tokens of a language model, examples of a classifier).
        correct: labels whose most probable class is the right one.
        each: the loss of every example, (B,), which sums to `total`; where a task leaves it out,
            scores that remove units one at a time take one pass for each of them.
        extra: further sums that measuring needs, by the names in `Task.extra`.
        logits: what the loss is of, (B, classes) or (B, T, classes), beside labels (B,) or (B, T);
            where a task leaves it out, nothing is distilled.
    """

    total: Tensor
    count: _Later[int] = _Later(optional=False)
    correct: _Later[int] = _Later(optional=False)
    each: _Later[Tensor | None] = _Later()
    extra: _Later[Mapping[str, float]] = _Later(dict)
    logits: Tensor | None = None


@dataclass(frozen=True)
class Shard:
    """One partition's private data, cut in three."""

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Naive:
    """What is reached without a model, from sums over labels that clients send once.

    Attributes:
        size: how many sums there are.
        sums: of a part, (size,).
        reached: measures on test, from the sums of the training and of the test parts, (size,)
            float64 each.
    """

    size: Callable[[Data], int]
    sums: Callable[[Part, Data], Tensor]
    reached: Callable[[Tensor, Tensor, Data], Mapping[str, float]]


@dataclass(frozen=True)
class Task:
    """A model and what it learns.

    Attributes:
        summary: one line for ``--list``.
        metric: what people read, a name in `fedprune.tasks.measures.METRICS`.
        unit: what `Loss.count` counts; clients weigh in a mean by it.
        model: builds the dense model of a resolved configuration; torch's global generator is
            seeded around the call.
        loss: sums over one batch, under the model's current mode.
        shards: every partition's shard, in partition order, under a resolved configuration.
        labels: how many labels a part holds, in `unit`; where left out as `labelled` says.
        output: names the modules of a model that are its head of output: not prunable unless
            asked. A tuple, where they do not depend on the model.
        models: what ``--model`` may name, with a line about each; the first one is the default.
        paths: whether ``--model`` may also be a folder or a hub id that `transformers` loads.
        columns: which of the options ``--text-column``, ``--label-column``, ``--target-column``
            and ``--client-column`` the task reads.
        classes: how many values a label has, for baselines that count labels; None: not counted.
        class_names: what the classes are called, in the order of the model's outputs: names, or
            what reads them from the data of a configuration (asked only where the configuration
            gives none, see `class_names_of`). They are saved with the model, and a model is built
            again from them without the data. None: the labels are no classes (tokens, numbers).
        naive: what is reached without a model; None: what the frequencies of the `classes` reach.
        dummy: one example that stands for any (no data in it): its shape alone is used, to count
            FLOPs and for scores that look at no data; None: neither is possible.
        extra: names of the further sums in `Loss.extra`, or what names them in a configuration
            (see `extra_names`).
        test_sums: sums of the test part alone, which cost too much elsewhere (generated text).
        test_sum_names: their names.
        population: who the clients of the data are, and what of it no client holds; asked with
            `clients` None (as many as there can be) where a column says whose a row is and the
            user does not say how many. None: the number of clients does not follow from the data.
        splits: split name to the data column it works on ("" where it needs none).
        defaults: configuration keys this task sets unless the user does.
        folder: whether `shards` reads the configuration's `data` folder.
        local: the shard of a real device from its own folder and the configuration; None: not
            for devices.
        tokenizer: a Hugging Face tokenizer to save beside the model, where there is one.
        tokens: which tensors of a part hold ids of the tokenizer (below 0: none).
        scale: what one unit of the model's values is in units of the labels, where a task
            predicts values that it standardises; None: the same.
    """

    summary: str
    metric: str
    unit: str
    model: Callable[[Data], nn.Module]
    loss: Callable[[nn.Module, Part], Loss]
    shards: Callable[[Data], Sequence[Shard]]
    labels: Callable[[Part], int] = field(default=lambda part: labelled(part))
    output: tuple[str, ...] | Callable[[nn.Module], tuple[str, ...]] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    paths: bool = False
    columns: tuple[str, ...] = ()
    classes: Callable[[Data], int] | None = None
    class_names: tuple[str, ...] | Callable[[Data], Sequence[str]] | None = None
    naive: Naive | None = None
    dummy: Callable[[Data], Part] | None = None
    extra: tuple[str, ...] | Callable[[Data], tuple[str, ...]] = ()
    test_sums: Callable[[nn.Module, Part, Data], Mapping[str, float]] | None = None
    test_sum_names: tuple[str, ...] = ()
    population: Callable[[Data], Population] | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"iid": ""})
    defaults: Mapping[str, Any] = field(default_factory=dict)
    folder: bool = False
    local: Callable[[Path, Data], Shard] | None = None
    tokenizer: Callable[[Data], Any] | None = None
    tokens: tuple[str, ...] = ()
    scale: Callable[[Data], float] | None = None


def examples(part: Part) -> int:
    """How many examples a part holds."""
    return next(iter(part.values())).shape[0]


def labelled(part: Part) -> int:
    """How many examples a part holds, but for those whose one label, of ``labels``, is -100."""
    labels = part.get("labels")
    return examples(part) if labels is None or labels.dim() != 1 else count_labels(labels)


def count_labels(labels: Tensor) -> int:
    """How many labels are not -100."""
    # NumPy needs a tenth of the time that torch takes for the few labels of a batch.
    return int(np.count_nonzero(labels.cpu().numpy() != -100))


def batches(part: Part, size: int, order: Tensor | None = None) -> Iterator[Part]:
    """The part in batches of at most `size` rows, in the given order of rows; none of no rows."""
    rows = torch.arange(examples(part)) if order is None else order
    if not len(rows):
        return
    for chosen in rows.split(size):
        yield {name: t[chosen] for name, t in part.items()}


def output_of(task: Task, model: nn.Module) -> tuple[str, ...]:
    """The names of a model's heads of output."""
    return task.output(model) if callable(task.output) else task.output


def extra_names(task: Task, config: Data) -> tuple[str, ...]:
    """The names of the further sums that measuring adds up, in a fixed order."""
    return task.extra(config) if callable(task.extra) else task.extra


def class_names_of(task: Task, config: Data) -> tuple[str, ...]:
    """The names of a task's classes, in the order of its outputs; none, where it has no classes.

    Those of the configuration, where it gives some: then no data is read.
    """
    if task.class_names is None or config.class_names:
        return config.class_names
    given = task.class_names
    return tuple(given(config) if callable(given) else given)
