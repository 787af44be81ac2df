"""The forms in which a program holds examples, read into named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from fedprune.options.refusal import ConfigError
from fedprune.tasks.task import Part


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and all(isinstance(t, Tensor | np.ndarray) for t in data)


def is_of_clients(data: Any) -> bool:
    """Whether it is a data set for each client: not a pair of tensors, nor a list of examples."""
    return isinstance(data, list | tuple) and not _is_pair(data) and not _is_example(data[0])


def _is_example(item: Any) -> bool:
    """Whether it is one example with a single number as its label."""
    label = item.get("labels", item.get("label")) if isinstance(item, Mapping) else None
    if isinstance(item, list | tuple) and len(item) == 2:
        label = item[1]
    return label is not None and np.ndim(label) == 0 and hasattr(label, "__float__")


def data_sets(data: Any) -> Iterable[Any]:
    """The data sets of all clients, or the one there is."""
    return data if is_of_clients(data) else [data]


def part_of(data: Any) -> Part:
    """The examples of a data set as named tensors of one length.

    Args:
        data: a `torch.utils.data.Dataset` of pairs ``(input, label)`` or of dictionaries with a key
            ``labels``, a `DataLoader` around one, a list of such pairs whose labels are single
            numbers, a `datasets.Dataset` (what its transform makes of the rows, where it has one),
            a dictionary of tensors (or arrays) of one length, or a pair of tensors ``(inputs,
            labels)``. A key or column ``label`` counts as ``labels``.

    Raises:
        ConfigError: it is none of the forms that `own_task` reads.
    """
    if _is_pair(data):
        if len(data) != 2:
            raise _unread(f"{len(data)} tensors")
        data = dict(zip(("inputs", "labels"), data, strict=True))
    if isinstance(data, Mapping):
        return _checked(_tensors(data))
    if _is_table(data):
        return _checked(dict(data.with_format("torch")[:]))
    collate = data.collate_fn if isinstance(data, DataLoader) else default_collate
    try:
        batch = collate(_rows(data.dataset if isinstance(data, DataLoader) else data))
    except ConfigError:
        raise
    except (TypeError, RuntimeError, ValueError) as error:  # examples of unlike sizes or kinds
        raise _unread(f"{type(data).__name__} ({' '.join(str(error).split())[:200]})") from None
    if isinstance(batch, list | tuple) and len(batch) == 2:
        batch = {"inputs": batch[0], "labels": batch[1]}
    if not isinstance(batch, Mapping):
        raise _unread(f"{type(data).__name__} of {type(batch).__name__}")
    return _checked(dict(batch))


def _rows(data: Any) -> list[Any]:
    """The examples of a data set that has a length."""
    name = type(data).__name__
    if hasattr(data, "__iter__") and not hasattr(data, "__len__"):
        what = "data with a length; list(data) reads a stream once"
        raise ConfigError(f"data={name}: a stream, of no length; allowed: {what}")
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise _unread(name)
    if not len(data):
        raise ConfigError(f"data={name}: no examples; allowed: at least 3")
    return [data[i] for i in range(len(data))]


def _tensors(values: Mapping[Any, Any]) -> dict[str, Any]:
    try:
        return {str(name): torch.as_tensor(t) for name, t in values.items()}
    except (TypeError, RuntimeError, ValueError):
        kinds = (f"{name} {type(t).__name__}" for name, t in values.items())
        raise _unread(", ".join(kinds)) from None


def _is_table(data: Any) -> bool:
    """Whether it is a `datasets.Dataset` whose rows no function of the user's transforms."""
    found = getattr(data, "format", None)
    return isinstance(found, Mapping) and found.get("type") != "custom"


def _unread(found: str) -> ConfigError:
    return ConfigError(
        f"data={found}: not read; allowed: a Dataset or DataLoader of pairs (input, label) or of "
        "dictionaries with labels, a datasets.Dataset, a dictionary of tensors, a pair of tensors"
    )


def _checked(part: dict[str, Any]) -> Part:
    """The same, if it is tensors of one length with labels among them (``label`` is one, too)."""
    if "labels" not in part and "label" in part:
        part = {"labels" if name == "label" else name: t for name, t in part.items()}
    strange = [n for n, t in part.items() if not isinstance(t, Tensor) or t.dim() == 0]
    if strange or "labels" not in part or len(part) < 2:
        no_tensors = f" (no numbers: {', '.join(strange)})" if strange else ""
        raise _unread(f"{', '.join(part) or 'nothing'}{no_tensors}")
    if len({len(t) for t in part.values()}) != 1:
        sizes = ", ".join(f"{name} {len(t)}" for name, t in part.items())
        raise ConfigError(f"data: {sizes}; allowed: as many of each")
    kind = part["labels"].dtype
    counted = not (kind.is_floating_point or kind.is_complex)
    return part | {"labels": part["labels"].long()} if counted else part
