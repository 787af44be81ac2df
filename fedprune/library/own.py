"""A task of what a program holds: a module, data sets, a loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from fedprune.options.refusal import ConfigError
from fedprune.randomness import generator
from fedprune.tasks.losses import class_loss
from fedprune.tasks.options import Data
from fedprune.tasks.task import Loss, Part, Shard, Task, examples

Losses = Callable[[Any, Tensor], Tensor]
"""From what the model returns and the labels to the loss of every example, (B,)."""


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
    first = part_of(next(iter(_sets(data))))
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
        defaults={"clients": len(data)} if _is_of_clients(data) else {},
    )


def _check_shares(data: Any, validation: float, test: float) -> None:
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ConfigError(
            f"validation={validation}, test={test}: no shares that leave some to train on; "
            "allowed: from 0, together below 1"
        )
    if isinstance(data, list | tuple) and not data:
        raise ConfigError("data: of no client; allowed: a data set for each client, or one")


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and all(isinstance(t, Tensor | np.ndarray) for t in data)


def _is_of_clients(data: Any) -> bool:
    """Whether it is a data set for each client: not a pair of tensors, nor a list of examples."""
    return isinstance(data, list | tuple) and not _is_pair(data) and not _is_example(data[0])


def _is_example(item: Any) -> bool:
    """Whether it is one example with a single number as its label."""
    label = item.get("labels") if isinstance(item, Mapping) else None
    if isinstance(item, list | tuple) and len(item) == 2:
        label = item[1]
    return label is not None and np.ndim(label) == 0 and hasattr(label, "__float__")


def _sets(data: Any) -> Iterable[Any]:
    return data if _is_of_clients(data) else [data]


def part_of(data: Any) -> Part:
    """The examples of a data set as named tensors of one length.

    Args:
        data: a `torch.utils.data.Dataset` of pairs ``(input, label)`` or of dictionaries with a key
            ``labels``, a `DataLoader` around one, a list of such pairs whose labels are single
            numbers, a `datasets.Dataset`, a dictionary of tensors (or arrays) of one length, or a
            pair of tensors ``(inputs, labels)``.

    Raises:
        ConfigError: it is none of the forms that `own_task` reads.
    """
    if _is_pair(data):
        if len(data) != 2:
            raise _unread(f"{len(data)} tensors")
        data = dict(zip(("inputs", "labels"), data, strict=True))
    if isinstance(data, Mapping):
        return _checked({str(name): torch.as_tensor(t) for name, t in data.items()})
    if hasattr(data, "with_format"):  # a datasets.Dataset
        return _checked(dict(data.with_format("torch")[:]))
    collate = data.collate_fn if isinstance(data, DataLoader) else default_collate
    rows = data.dataset if isinstance(data, DataLoader) else data
    if not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")):
        raise _unread(type(data).__name__)
    if not len(rows):
        raise ConfigError(f"data={type(data).__name__}: no examples; allowed: at least 3")
    try:
        batch = collate([rows[i] for i in range(len(rows))])
    except (TypeError, RuntimeError, ValueError) as error:  # examples of unlike sizes or kinds
        raise _unread(f"{type(data).__name__} ({' '.join(str(error).split())[:200]})") from None
    if isinstance(batch, list | tuple) and len(batch) == 2:
        batch = {"inputs": batch[0], "labels": batch[1]}
    if not isinstance(batch, Mapping):
        raise _unread(f"{type(data).__name__} of {type(batch).__name__}")
    return _checked(dict(batch))


def _unread(found: str) -> ConfigError:
    return ConfigError(
        f"data={found}: not read; allowed: a Dataset or DataLoader of pairs (input, label) or of "
        "dictionaries with labels, a datasets.Dataset, a dictionary of tensors, a pair of tensors"
    )


def _checked(part: dict[str, Any]) -> Part:
    """The same, if it is tensors of one length with labels among them."""
    strange = [n for n, t in part.items() if not isinstance(t, Tensor) or t.dim() == 0]
    if strange or "labels" not in part or len(part) < 2:
        no_tensors = f", no tensors: {', '.join(strange)}" if strange else ""
        raise _unread(f"{', '.join(part) or 'nothing'}{no_tensors}")
    if len({len(t) for t in part.values()}) != 1:
        sizes = ", ".join(f"{name} {len(t)}" for name, t in part.items())
        raise ConfigError(f"data: {sizes}; allowed: as many of each")
    truths = part["labels"].dtype == torch.bool
    return part | {"labels": part["labels"].long()} if truths else part


def _is_of_classes(part: Part) -> bool:
    return part["labels"].dim() == 1 and not part["labels"].is_floating_point()


def _dealt(data: Any, config: Data) -> list[Part]:
    """Each client's examples."""
    if _is_of_clients(data):
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
    return (outputs.view_as(labels) - labels).square().reshape(len(labels), -1).sum(-1)
