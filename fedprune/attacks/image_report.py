"""Images made from what is released: sections of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedprune.attacks.digits import SHAPE, all_digits, one_each
from fedprune.attacks.exposed import (
    CHANCE,
    Exposed,
    MessageProtection,
    noise_like,
    protections,
    views,
)
from fedprune.attacks.inversion import inverted
from fedprune.attacks.matching import Search, matched
from fedprune.attacks.page import Figure, Passage, Picture, error_cell, pivot, share_cell
from fedprune.attacks.pictures import tiles
from fedprune.attacks.quantities import QUANTITIES
from fedprune.attacks.scene import Scene, message, scene
from fedprune.selection.select import select
from fedprune.tasks.task import Part
from fedprune.tensors.named import Masks, Tensors

_Tick = Callable[[], None]

_CLIENTS, _TARGETS, _SEARCHED = 10, 3, 4
FIRST = "features.1.weight"

_PRUNED = {"|g|, 80 % pruned": ("|g|", 0.8), "|g|, 95 % pruned": ("|g|", 0.95)}
"""The same from a model that has lost its smallest weights: only what is kept is released."""

DEFENDED = {"change, 10 % kept back": ("change", 0.1), "change, 30 % kept back": ("change", 0.3)}
"""The largest part of it stays with the client (--defence). Of one image's most is 0 anyway."""

IMAGE_CASES = {name: (name, 0.0) for name in QUANTITIES} | _PRUNED | DEFENDED
MATCHED = {n: case for n, case in IMAGE_CASES.items() if QUANTITIES[case[0]].each is not None}

CLOSED_TEXT = (
    "A client with one image answers one question about a network of linear layers (--task digits "
    "--model mlp). The observer knows the model and the question, as the server does. The weight "
    "of the first layer then has a gradient of rank one with the image as a factor: no search, "
    "no prior, and the absolute value, the square and the product with the weight do not get in "
    "the way, since pixels are not negative. Label and brightness follow from the known model.",
    "Mean squared error of pixels in 0..1 and its spread over seeds, with the peak "
    "signal-to-noise ratio; exact is below 1e-9. The right end is chance: the same attack on a "
    "random message. Of a sum the observer makes as many images as there are clients, and the "
    "closest one counts, which makes chance better too.",
    "In the columns with an epsilon the observer knows all other clients' messages and has taken "
    "them away from the noised sum: the worst case that differential privacy covers, at that "
    "epsilon for this one release (delta 1e-5, one client replaced by another).",
    "What to take from it: releasing |g| instead of g is no protection and neither is clipping, a "
    "mask alone shows the image, and a model pruned by 80 % still gives it away exactly. A sum of "
    "clients helps most where it adds values with a sign; sums of |g|, g² or |g·w| come apart into "
    "images more easily. What a client keeps back of its change (--defence, after PriPrune) is "
    "filled in exactly by an observer who knows of it, until nothing is left: most of one image's "
    "change is 0, so that the largest 30 % are all of it. Noise at epsilon 1 or 10 leaves chance; "
    "at 1000, which promises nothing, images begin to show again. Fedprune does not claim that "
    "pruning protects anybody.",
)
SEARCH_TEXT = (
    "The default network of the task has convolutions first, from which no image can be read off. "
    "Here the observer searches for the image whose release would look like the message (cosine "
    "similarity, total variation, labels given: Geiping et al. 2020), through |g|, g² and a mask "
    "as well as through g. Σ x² of inputs is left out: it is not of gradients.",
    "A search that fails proves little: better ones exist, and longer ones. Here it is the signed "
    "sum of a few clients that is found almost as well as one message: what protects against one "
    "attack is open to another.",
)


def _masks(weights: Tensors, names: Sequence[str], sparsity: float) -> Masks:
    scores = {n: weights[n].double().abs() for n in names}
    # The last layer's weights are smaller than the first's from the start: all of them would go.
    return select(scores, sparsity, scope="layer")


def scene_of(case: tuple[str, float], parts: Sequence[Part], model: str, seed: int) -> Scene:
    """The scene of a case: a quantity, and how much of it is kept back or of the model pruned."""
    name, sparsity = case
    keys: dict[str, Any] = {"task": "digits", "model": model, "seed": seed}
    if case in DEFENDED.values():
        return scene(name, parts, {**keys, "defence": sparsity})
    made = scene(name, parts, keys)
    if not sparsity:
        return made
    masks = _masks(made.question.weights, made.host.layout.prunable, sparsity)
    return scene(name, parts, keys, masks=masks)


def closed_form_findings(
    seeds: Sequence[int], epsilons: Sequence[float], tick: _Tick = lambda: None
) -> tuple[list[Passage], dict[str, Any]]:
    """Sections about single images by inversion in closed form, and their figures.

    `seeds`: another model and other images for each of them.
    """
    data, known = all_digits(), protections(epsilons, _CLIENTS)
    figures, rows = list[Figure](), list[tuple[str, list[Tensor | None]]]()
    for seed in seeds:
        parts = one_each(data, _CLIENTS, seed)
        for name, case in IMAGE_CASES.items():
            made = scene_of(case, parts, "mlp", seed)
            messages = [message(made, p) for p in range(_CLIENTS)]
            for target in range(_TARGETS):
                shown = list[Tensor | None]([parts[target]["images"][0, 0]])
                turned = messages[target:] + messages[:target]
                for column, seen in _views(made, turned, known, seed).items():
                    found = inverted(made, seen, FIRST, SHAPE, seed)
                    figure, image = _measured(found, parts[target])
                    figures.append({"quantity": name, "protection": column, "seed": seed, **figure})
                    shown.append(image)
                if seed == seeds[0] and not target:
                    rows.append((name, shown))
            tick()
    columns = ["original", *dict.fromkeys(f["protection"] for f in figures)]
    caption = (
        "The first image of the first seed, as it was, and what the observer makes of each release."
    )
    picture = Picture("inversion", "One image, in closed form", caption, tiles(columns, rows))
    return _closed_sections(figures, picture, data), {"rows": figures}


def _closed_sections(figures: list[Figure], picture: Picture, data: Part) -> list[Passage]:
    images = data["images"].double()
    blind = float((images - images.mean(0)).square().mean())
    more = f"Whoever has seen nothing and guesses the mean digit has an error of {blind:.3f}."
    single = [f for f in figures if f["label"] is not None]
    labels = (
        "Label of the one image, found with it: the share of trials in which it is right. Chance "
        "is 10 %. Sums, votes and inputs of layers were not asked for labels here.",
    )
    return [
        Passage(picture.title, (*CLOSED_TEXT, more), pivot(figures, error_cell), (picture,)),
        Passage("Its label", labels, pivot(single, share_cell("label"))),
    ]


def _views(
    made: Scene, messages: list[Tensor], known: Mapping[str, MessageProtection], seed: int
) -> dict[str, Exposed]:
    """What each column has of the first of the messages; the last ones are chance."""
    most = max(p.clients for p in known.values())
    best = {f"{CHANCE}, best of {most}": noise_like(made, messages[0], seed, most)}
    return views(made, messages, known, seed) | best


def _measured(found: Part, truth: Part) -> tuple[Figure, Tensor]:
    """Error of the closest image, whether the label is right (None: not found), and the image."""
    errors = (found["images"].double() - truth["images"].double()).square().flatten(1).mean(1)
    best = int(errors.argmin())
    label = int(found["labels"][0])
    right = None if label < 0 else float(label == int(truth["labels"][0]))
    return {"mse": float(errors[best]), "label": right}, found["images"][best, 0].clamp(0, 1)


def search_findings(
    seeds: Sequence[int], epsilons: Sequence[float], steps: int, tick: _Tick = lambda: None
) -> tuple[list[Passage], dict[str, Any]]:
    """The section about images by search through the task's default network, and its figures.

    `seeds`: another model and another image for each of them. `epsilons`: the largest of them is
    shown.
    """
    data, known = all_digits(), protections(epsilons[-1:], _SEARCHED)
    search, figures = Search(steps=steps, restarts=1), list[Figure]()
    rows = list[tuple[str, list[Tensor | None]]]()
    known = {n: p for n, p in known.items() if n != "clipped" and "," not in n}
    for seed in seeds:
        parts = one_each(data, _SEARCHED, seed)
        for name, case in MATCHED.items():
            made = scene_of(case, parts, "cnn", seed)
            messages = [message(made, p) for p in range(_SEARCHED)]
            shown = list[Tensor | None]([parts[0]["images"][0, 0]])
            for column, seen in views(made, messages, known, seed).items():
                given = {k: torch.cat([p[k] for p in parts[: seen.clients]]) for k in parts[0]}
                found = {"images": matched(made, seen, given, search, seed)}
                figure, image = _measured({**found, "labels": torch.tensor([-1])}, parts[0])
                figures.append({"quantity": name, "protection": column, "seed": seed, **figure})
                shown.append(image)
            if seed == seeds[0]:
                rows.append((name, shown))
            tick()
    columns = ["original", *dict.fromkeys(f["protection"] for f in figures)]
    caption = f"The image of the first seed, as it was and as {steps} steps of search have it."
    picture = Picture("search", "One image, by search", caption, tiles(columns, rows))
    section = Passage(picture.title, SEARCH_TEXT, pivot(figures, error_cell), (picture,))
    return [section], {"rows": figures}
