"""A task of what a program holds: a module, data sets, a loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.library.forms import data_sets, is_of_clients, part_of
from fedprune.library.keywords import told_in_keywords
from fedprune.options.refusal import ConfigError
from fedprune.randomness import generator
from fedprune.tasks.losses import class_loss
from fedprune.tasks.options import Data
from fedprune.tasks.task import Loss, Part, Shard, Task, examples

Losses = Callable[[Any, Tensor], Tensor]
"""From what the model returns and the labels to the loss of every example, (B,)."""


@told_in_keywords()
def own_task(
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    loss: Losses | None = None,
    output: tuple[str, ...] = (),
    validation: float = 0.1,
    test: float = 0.2,
) -> Task:
    """A task around a module and data, for `fedprune.federate` and `fedprune.prune`.

    Args:
        model: a module (copied, never changed) with the weights to begin with; or what makes one.
        data: one data set, as `part_of` reads it, which is dealt to the clients at random and
            evenly; or a list or tuple of data sets, one for each client.
        loss: of every example. Default: cross-entropy for whole numbers as labels, (B,), else the
            squared error, summed over an example's values.
        output: names of the modules that make the outputs: their weights stay dense.
        validation: share of each client's examples for validation, at least one example.
        test: share for the final test, at least one example.

    The model is called with the one tensor that is not ``labels``, or with several by name; of what
    it returns ``logits`` are taken where it has some. Labels True and False are classes 1 and 0.

    Raises:
        ConfigError: data of another form, shares that leave nothing to train on, a client with
            fewer than three examples, or a class that the model has no output for.
    """
    _check_shares(data, validation, test)
    first = part_of(next(iter(data_sets(data))))
    classes = loss is None and _is_of_classes(first)
    made = model if not isinstance(model, nn.Module) else lambda: copy.deepcopy(model)

    def shards(config: Data) -> Sequence[Shard]:
        parts = _dealt(data, config)
        if classes:
            _check_classes(made, parts)
        return [_cut(part, config.seed, p, validation, test) for p, part in enumerate(parts)]

    return Task(
        summary="a model and data of one's own",
        metric="accuracy" if classes else "loss",
        unit="examples",
        model=lambda _: made(),
        loss=_loss_of(loss, classes=classes),
        shards=shards,
        output=output,
        dummy=lambda _: {name: torch.zeros_like(t[:1]) for name, t in first.items()},
        defaults={"clients": len(data)} if is_of_clients(data) else {},
    )


def _check_shares(data: Any, validation: float, test: float) -> None:
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ConfigError(
            f"validation={validation}, test={test}: no shares that leave some to train on; "
            "allowed: from 0, together below 1"
        )
    if isinstance(data, list | tuple) and not data:
        raise ConfigError("data: of no client; allowed: a data set for each client, or one")


def _is_of_classes(part: Part) -> bool:
    return part["labels"].dim() == 1 and not part["labels"].is_floating_point()


def _dealt(data: Any, config: Data) -> list[Part]:
    if is_of_clients(data):
        if len(data) != config.clients:
            raise ConfigError(
                f"clients={config.clients}: the task has data of {len(data)} clients; "
                f"allowed: {len(data)}"
            )
        return [part_of(d) for d in data]
    part = part_of(data)
    order = torch.randperm(examples(part), generator=generator(config.seed, "own data"))
    return [
        {n: t[rows] for n, t in part.items()} for rows in order.tensor_split(int(config.clients))
    ]


def _cut(part: Part, seed: int, partition: int, validation: float, test: float) -> Shard:
    """A client's examples in three, at random."""
    n = examples(part)
    if n < 3:
        raise ConfigError(f"data: client {partition} has {n} examples; allowed: at least 3")
    order = torch.randperm(n, generator=generator(seed, "own parts", partition))
    v, t = (max(1, round(n * share)) for share in (validation, test))
    if v + t >= n:
        v = t = 1
    first, second, third = order.split([n - v - t, v, t])
    train, held, last = ({k: x[rows] for k, x in part.items()} for rows in (first, second, third))
    return Shard(train, held, last)


def _outputs(model: nn.Module, batch: Part) -> Any:
    kind = next((p.dtype for p in model.parameters()), torch.float32)  # NumPy's are float64
    inputs = {
        name: t.to(kind) if t.is_floating_point() else t
        for name, t in batch.items()
        if name != "labels"
    }
    found = model(*inputs.values()) if len(inputs) == 1 else model(**inputs)
    if isinstance(found, Mapping):
        if "logits" not in found:
            raise ConfigError(f"model: gives {', '.join(map(str, found))}; allowed: logits, too")
        return found["logits"]
    return getattr(found, "logits", found)


def _check_classes(made: Callable[[], nn.Module], parts: Sequence[Part]) -> None:
    """Raise if there is a label that the model has no output for."""
    filled = [part for part in parts if examples(part)]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            one = {name: t[:1] for name, t in filled[0].items()}
            count = _outputs(made().eval(), one).shape[-1]
    except (IndexError, RuntimeError, TypeError, AttributeError):
        return  # the rehearsal says why a model cannot be called
    ends = {int(end) for part in filled for end in part["labels"].aminmax()}
    if wrong := sorted(label for label in ends - {-100} if not 0 <= label < count):
        raise ConfigError(
            f"data: label {wrong[-1]}, and the model gives {count} values; allowed: 0 to "
            f"{count - 1}, or loss=, if these are no classes"
        )


def _loss_of(loss: Losses | None, *, classes: bool) -> Callable[[nn.Module, Part], Loss]:
    def of(model: nn.Module, batch: Part) -> Loss:
        outputs, labels = _outputs(model, batch), batch["labels"]
        if loss is None and not isinstance(outputs, Tensor):
            raise ConfigError(
                f"model: gives a {type(outputs).__name__}; allowed: a tensor, what has logits, or "
                "loss=, a function of what it gives and the labels"
            )
        if classes:
            return class_loss(outputs, labels)
        each = (loss or _squared)(outputs, labels)
        if each.shape != labels.shape[:1]:
            raise ConfigError(
                f"loss: gives {tuple(each.shape)} for {len(labels)} examples; allowed: the loss of "
                "each, (B,), such as CrossEntropyLoss(reduction='none')"
            )
        return Loss(each.sum(), len(labels), 0, each)

    return of


def _squared(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.numel() != labels.numel():
        raise ConfigError(
            f"model: gives {tuple(outputs.shape)} for labels {tuple(labels.shape)}, which are no "
            "classes; allowed: as many values, whole numbers (B,) as classes, or loss="
        )
    return (outputs.reshape(labels.shape) - labels).square().reshape(len(labels), -1).sum(-1)
