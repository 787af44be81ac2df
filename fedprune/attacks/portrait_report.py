"""What finished models show of their classes: a section of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.attacks.digits import CLASSES, SHAPE, all_digits
from fedprune.attacks.page import Figure, Passage, Picture, number_cell, pivot, share_cell
from fedprune.attacks.pictures import tiles
from fedprune.attacks.portraits import class_means, portraits, resemblance
from fedprune.config import configure
from fedprune.protocol.models import dense_model
from fedprune.run import run_federated

_MODELS: dict[str, dict[str, Any] | None] = {
    "untrained": None,
    "dense": {"sparsity": 0.0},
    "80 % pruned": {"sparsity": 0.8},
    "95 % pruned": {"sparsity": 0.95},
}
"""Keys of the run that a model comes out of; None: as it was before any."""

_TEXT = (
    "Everyone who gets the finished model can look for the image that it is surest of, class by "
    "class. Here with the models of small federated runs (--task digits --model mlp), and with the "
    "untrained one for comparison.",
    "Correlation of each portrait with the mean image of its class, the share of portraits that "
    "resemble the mean of their own class more than that of any other (10 % by chance), and the "
    "model's accuracy.",
    "A portrait is of a class: where a class is one person, that is their picture; here it is what "
    "a digit looks like. Secure sums do not change the finished model and so do not change this; "
    "noise does, as far as it changes the model.",
)


def portrait_findings(
    seeds: Sequence[int], tick: Callable[[], None] = lambda: None
) -> tuple[list[Passage], dict[str, Any]]:
    """The section about finished models, and its figures."""
    data = all_digits()
    means, figures = class_means(data["images"], data["labels"], CLASSES), list[Figure]()
    shown = [("class means", _rows(means))]
    for seed in seeds:
        for name, keys in _MODELS.items():
            model, accuracy = _trained(keys, seed)
            made = portraits(model, CLASSES, SHAPE)
            like = resemblance(made, means)
            own = (like.argmax(1) == torch.arange(CLASSES)).double().mean()
            measured = {
                "correlation": float(like.diagonal().mean()),
                "own": float(own),
                "accuracy": accuracy,
            }
            figures.append({"quantity": name, "seed": seed, **measured})
            if seed == seeds[0]:
                shown.append((name, _rows(made)))
            tick()
    cells = {
        "correlation": number_cell("correlation"),
        "own class": share_cell("own"),
        "accuracy": share_cell("accuracy"),
    }
    long = [{**f, "protection": name} for f in figures for name in cells]
    table = pivot(long, lambda some: cells[some[0]["protection"]](some))
    caption = "The mean image of each class, and the images that the first seed's models know."
    drawn = tiles([str(c) for c in range(CLASSES)], shown)
    picture = Picture("portraits", "Classes, and what models know of them", caption, drawn)
    section = Passage("What the finished model shows", _TEXT, table, (picture,))
    return [section], {"rows": figures}


def _rows(images: Tensor) -> list[Tensor | None]:
    return list(images[:, 0])


def _trained(keys: dict[str, Any] | None, seed: int) -> tuple[nn.Module, float | None]:
    """A model and its accuracy on the clients' test parts; None where it was not measured."""
    small = {"task": "digits", "model": "mlp", "seed": seed, "clients": 10, "cohort": 10}
    if keys is None:
        return dense_model(configure(small)).eval(), None
    result = run_federated(configure({**small, "rounds": 12, "warmup": 3, **keys}))
    return result.model, float(result.summary["quality"]["final"]["accuracy"])
