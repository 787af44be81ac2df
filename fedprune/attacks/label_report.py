"""Shares of labels found from what is released: a section of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedprune.attacks.digits import CLASSES, SHAPE, all_digits, skewed
from fedprune.attacks.exposed import Exposed, MessageProtection, protections, views
from fedprune.attacks.labels import Templates, correlation, histogram, templates_of
from fedprune.attacks.page import Figure, Passage, number_cell, pivot, share_cell
from fedprune.attacks.quantities import QUANTITIES
from fedprune.attacks.scene import Scene, message, scene
from fedprune.tasks.task import Part

_CLIENTS, _TARGETS = 10, 4
_SIZES = (32, 200)
HEADS: dict[str, tuple[str, ...]] = {"": (), ", with head": ("head.weight",)}
"""The last layer is not scored unless asked; a change of the weights always holds it."""

LABEL_CASES = {
    f"{name}{told}": (name, head)
    for name, quantity in QUANTITIES.items()
    for told, head in HEADS.items()
    if quantity.each is not None and (quantity.kind == "score" or not head)
}
"""Quantities, of the layers that are scored by default, and with the last one (--include)."""

TEXT = (
    "Clients hold {size} digits each whose labels follow a Dirichlet distribution of 0.3, so that "
    "a few classes make up most of a shard, and answer one question about the untrained default "
    "network. The observer makes noise images, takes the gradient that the model has for each "
    "class, and finds the mixture of classes that would look like the message; where rows of the "
    "last layer are sent without a sign, their means do.",
    "Correlation of the shares that were found with those of the client, and its spread over "
    "seeds. Chance is 0: the column on the right. Σ x² of inputs was not attacked.",
    "What to take from it: no image comes back from shards of this size here, but what a "
    "client's data is about does, from values, squares and masks alike, and leaving the last layer "
    "unscored does not stop it.",
)
DOMINANT = (
    "The share of clients whose most frequent class of {size} images was found; by chance it is "
    "about 10 %. A secure sum has one mixture for all of its clients.",
)


def label_findings(
    seeds: Sequence[int], epsilons: Sequence[float], tick: Callable[[], None] = lambda: None
) -> tuple[list[Passage], dict[str, Any]]:
    """Sections about shares of labels, and their figures."""
    data, sections, told = all_digits(), list[Passage](), dict[str, Any]()
    known = protections(epsilons, _CLIENTS)
    for size in _SIZES:
        figures = list[Figure]()
        for seed in seeds:
            parts = skewed(data, _CLIENTS, size, seed)
            for name, (quantity, head) in LABEL_CASES.items():
                keys = {"task": "digits", "model": "cnn", "seed": seed, "include": head}
                made = scene(quantity, parts, keys)
                found = _trials(made, parts, known, seed)
                figures += [{"quantity": name, "seed": seed, **f} for f in found]
                tick()
        told[f"of {size}"] = figures
        sections += _sections(size, figures)
    return sections, told


def _sections(size: int, figures: list[Figure]) -> list[Passage]:
    about, dominant = (
        tuple(t.format(size=size) for t in texts)
        for texts in (TEXT if size == _SIZES[0] else TEXT[1:2], DOMINANT)
    )
    return [
        Passage(f"Labels of {size} images", about, pivot(figures, number_cell("correlation"))),
        Passage(
            f"The dominant class of {size} images", dominant, pivot(figures, share_cell("dominant"))
        ),
    ]


def _trials(
    made: Scene, parts: Sequence[Part], known: Mapping[str, MessageProtection], seed: int
) -> list[Figure]:
    messages = [message(made, p) for p in range(_CLIENTS)]
    templates, out = templates_of(made, SHAPE, seed), list[Figure]()
    for target in range(_TARGETS):
        turned = messages[target:] + messages[:target]
        seen_by = views(made, turned, known, seed + 1000 * target)
        truth = torch.bincount(parts[target]["labels"], minlength=CLASSES).double()
        out += [
            {"protection": column, **_measured(made, seen, templates, truth)}
            for column, seen in seen_by.items()
        ]
    return out


def _measured(made: Scene, seen: Exposed, templates: Templates, truth: Tensor) -> Figure:
    shares = histogram(made, seen, templates)
    right = bool(truth[int(shares.argmax())] == truth.max())
    return {"correlation": correlation(shares, truth), "dominant": float(right)}
