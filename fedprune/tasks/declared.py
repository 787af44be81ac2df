"""What a task says of itself, held against what its loss gives for a few examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fedprune.options.refusal import refuse
from fedprune.tasks.measures import METRICS, measures
from fedprune.tasks.options import Data
from fedprune.tasks.task import Loss, Part, Task, batches, examples, extra_names

_CLOSE = 1e-3
"""Relative difference up to which two sums of the same losses are equal."""

_OF_NUMBERS = {"mse": ("squared",), "rmse": ("squared",), "mae": ("absolute",)}
"""Metrics that are read from the loss where no sum of this name is given."""

_OF_SYMBOLS = ("perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Declared:
    """A task under a configuration, and how it is refused."""

    task: Task
    config: Data

    def refuse(self, what: str, allowed: str) -> NoReturn:
        """Raise a ValueError of the usual form about the task."""
        refuse("task", self.config.task, what, allowed)

    def check_names(self, part: Part) -> None:
        """Refuse names that are of nothing: unit, metric, tokens."""
        task = self.task
        if not isinstance(task.unit, str) or not task.unit:
            self.refuse(f"its unit is {task.unit!r}", "what Loss.count counts, in a word")
        lost = [name for name in task.tokens if name not in part]
        if lost:
            self.refuse(f"its tokens name {lost[0]!r}, no tensor of a part", ", ".join(part))

    def check_metric(self, totals: Mapping[str, float]) -> None:
        """Refuse a metric that is not had from the sums that were measured."""
        name = self.task.metric
        if name not in METRICS:
            self.refuse(f"its metric is {name!r}", ", ".join(METRICS))
        found = measures({**totals, "loss": 1.0, "count": 1.0}, name)
        if name not in found:
            reason = f"its metric {name} needs sums in Loss.extra, named in Task.extra"
            self.refuse(reason, ", ".join(METRICS[name].sums) or ", ".join(found))

    def check_loss(self, model: nn.Module, batch: Part, slope: Part | None = None) -> Loss:
        """The loss of a batch, if it is what `Loss` says.

        Args:
            model: what the loss is of.
            batch: some examples.
            slope: fewer of them, by which to look for a gradient where the model is large; the
                loss that is returned has none then.

        Raises:
            ValueError: a field has another type or shape, or is out of range; there is no
                gradient; labels are counted otherwise; extra sums are missing.
        """
        with torch.set_grad_enabled(slope is None):
            loss: Any = self.task.loss(model, batch)
        if not isinstance(loss, Loss):
            self.refuse(f"its loss gives a {type(loss).__name__}", "a fedprune.Loss")
        self._check_total(loss.total)
        self._check_gradient(loss if slope is None else self.task.loss(model, slope), model)
        self._check_counts(loss, batch)
        self._check_rest(loss, examples(batch))
        return loss

    def _check_total(self, total: Any) -> None:
        if not isinstance(total, Tensor) or total.numel() != 1 or total.dim():
            found = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
            self.refuse(f"Loss.total is {found}", "a tensor without dimensions: a sum")
        if not math.isfinite(total.item()):
            self.refuse(f"Loss.total is {total.item()} before any training", "a finite loss")

    def _check_gradient(self, loss: Loss, model: nn.Module) -> None:
        total = loss.total
        if not (total.requires_grad and _has_gradient(total, model)):
            self.refuse(
                "Loss.total has no gradient in any parameter", "a loss that the model is part of"
            )

    def _check_counts(self, loss: Loss, batch: Part) -> None:
        labels: Any = self.task.labels(batch)
        for name, value in (("count", loss.count), ("correct", loss.correct), ("", labels)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                what = f"Loss.{name}" if name else "what its labels counts"
                self.refuse(f"{what} is a {type(value).__name__}", "a whole number")
        if loss.count < 0 or not 0 <= loss.correct <= loss.count:
            what = f"Loss.correct is {loss.correct} and Loss.count {loss.count}"
            self.refuse(what, "0 to count, and count at least 0")
        if labels != loss.count:
            self.refuse(
                f"its labels counts {labels} and Loss.count {loss.count} in the same batch",
                "the same number: clients weigh by one, means are taken by the other",
            )

    def _check_rest(self, loss: Loss, size: int) -> None:
        each = None if loss.each is None else loss.each.detach()
        if each is not None and each.shape != (size,):
            self.refuse(f"Loss.each is {tuple(each.shape)}", f"the loss of each example, ({size},)")
        if each is not None and not _close(float(each.sum()), loss.total.item()):
            what = f"Loss.each sums to {float(each.sum()):.6g}, Loss.total is"
            self.refuse(f"{what} {loss.total.item():.6g}", "the same sum")
        lost = [name for name in extra_names(self.task, self.config) if name not in loss.extra]
        if lost:
            names = ", ".join(loss.extra) or "none, which is all that the loss gives"
            self.refuse(f"its extra names {lost[0]!r}, which Loss.extra has not", names)

    def check_sum(self, model: nn.Module, batch: Part, whole: Loss) -> None:
        """Refuse a mean over the batch in place of a sum.

        A loss that is neither (one that compares the examples of a batch) is not judged.
        """
        single = [self.task.loss(model, one) for one in batches(batch, 1)]
        total = math.fsum(loss.total.item() for loss in single)
        count = sum(loss.count for loss in single)
        found = whole.total.item()
        means = [total / n for n in (len(single), count) if n > 1]
        if not _close(found, total) and any(_close(found, mean) for mean in means):
            self.refuse("Loss.total is a mean over the batch", "a sum (reduction='sum')")

    def check_labels(self, parts: Iterable[tuple[str, Part]], loss: Loss, batch: Part) -> None:
        """Refuse labels that are no class of the model's, and classes that are not its number.

        `parts` are everybody's, each with what it is called; the loss is of the batch.
        """
        labels, logits = batch.get("labels"), loss.logits
        self._check_kind(labels, loss)
        numbers = labels is None or labels.is_floating_point() or labels.dtype == torch.bool
        if labels is None or numbers or self.task.metric in _OF_NUMBERS:
            return  # whole numbers that are predicted as such have no range of classes
        declared = None if self.task.classes is None else self.task.classes(self.config)
        able = declared
        if logits is not None and logits.shape[:-1] == labels.shape:
            able = logits.shape[-1]
            one_each = labels.dim() == 1
            if declared is not None and (declared > able or (one_each and declared != able)):
                self.refuse(f"its classes are {declared}, its model gives {able}", f"{able}")
        for where, part in parts:
            if able is not None and part["labels"].numel():
                self._check_range(part["labels"], able, where)

    def _check_kind(self, labels: Tensor | None, loss: Loss) -> None:
        """Refuse a metric of numbers where labels are classes, and one of symbols for numbers."""
        metric, logits = self.task.metric, loss.logits
        if labels is None:
            return
        if labels.is_floating_point() and metric in _OF_SYMBOLS:
            reason = f"its metric is {metric}, and its labels are numbers"
            self.refuse(reason, "mse, rmse, mae, loss")
        read = _OF_NUMBERS.get(metric, ())
        own = set(extra_names(self.task, self.config)).intersection(read)
        if not read or own or logits is None or logits.shape[:-1] != labels.shape:
            return
        if not labels.is_floating_point() and logits.shape[-1] > 1:
            outputs = logits.shape[-1]
            what = f"its metric {metric} is of numbers, its labels are classes of {outputs} outputs"
            numbers = f"one output, or labels of floating point, or Loss.extra[{read[0]!r}]"
            self.refuse(what, f"accuracy, macro_f1, loss; for numbers {numbers}")

    def _check_range(self, labels: Tensor, classes: int, where: str) -> None:
        low, high = (int(x) for x in torch.aminmax(labels))
        if high >= classes or (low < 0 and int(labels[labels < 0].max()) != -100) or low < -100:
            allowed = f"0 to {classes - 1}, and -100 for what does not count"
            self.refuse(f"labels of {where} are {low} to {high}", allowed)


def _has_gradient(total: Tensor, model: nn.Module) -> bool:
    """Whether a sum depends on any parameter: on a small one late in the model, or on another."""
    able = [p for p in model.parameters() if p.requires_grad]
    last = min(reversed(able), key=Tensor.numel, default=None)
    # Towards the last norm, say, it is a short way, and its gradient takes no memory.
    for some in ([] if last is None else [last], able):
        slopes = torch.autograd.grad(total, some, allow_unused=True, retain_graph=True)
        if any(slope is not None for slope in slopes):
            return True
    return False


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= _CLOSE * max(abs(a), abs(b))
