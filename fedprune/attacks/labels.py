"""How often each label occurs in a client's data, from what it releases.

The gradient of the cross-entropy by the last layer's row of a class is negative for examples of
that class and positive for all others (iDLG, Zhao et al. 2020, arXiv 2001.02610; for batches, LLG,
Wainakh et al. 2021, arXiv 2105.09369). Where the rows themselves are not sent, or have signs, the
observer makes noise images, takes the gradient that the known model has for each class, and looks
for the mixture of classes whose release would look most like the message.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.attacks.exposed import Exposed
from fedprune.attacks.scene import Scene
from fedprune.randomness import generator
from fedprune.tasks.task import output_of

_NOISE_IMAGES, _STEPS, _COLUMNS = 32, 80, 48


@dataclass(frozen=True)
class Templates:
    """What noise images of each class would release of one matrix; all tensors float64."""

    name: str  # of the matrix, the one nearest to the output that is released
    columns: Tensor  # which of its columns are looked at
    weight: Tensor  # its values there
    each: Tensor  # (classes, rows, columns) mean gradient, or mean square of single gradients
    head: bool  # whether its rows are the classes


def histogram(scene: Scene, seen: Exposed, templates: Templates) -> Tensor:
    """Share of each label, (classes,) float64, that sums to 1.

    Equal shares where the quantity is not of gradients.
    """
    classes = len(templates.each)
    if scene.quantity.each is None:
        return torch.full((classes,), 1 / classes, dtype=torch.float64)
    values = seen.values[templates.name].flatten(1)
    if templates.head and not scene.quantity.signed:
        return _of_rows(values, seen.masks.get(templates.name))
    return _mixture(scene, seen, templates)


def _of_rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Rows of frequent classes have large gradients, of either sign."""
    rows = values.sum(1) / (values.shape[1] if mask is None else mask.sum(1).clamp(min=1))
    rows = rows - rows.min()
    return rows / rows.sum().clamp(min=1e-30)


def _mixture(scene: Scene, seen: Exposed, templates: Templates) -> Tensor:
    """The shares of classes whose release would look most like the message, by Adam.

    From every class once: what is made of an absolute value has many local optima.
    """
    signed, columns = scene.quantity.signed, templates.columns
    mask = seen.masks.get(templates.name)
    kept = None if mask is None else mask.flatten(1)[:, columns]
    target = _profile(seen.values[templates.name].flatten(1)[:, columns], signed)
    start = (3.0 * torch.eye(len(templates.each), dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.Adam([start], lr=0.2)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        would = _would(scene, templates, start.softmax(1))
        profiles = _profile(would if kept is None else would * kept, signed)
        likeness = _likeness(profiles, target, centred=scene.quantity.votes)
        (-likeness.sum()).backward()
        optimizer.step()
    return start.detach()[int(likeness.argmax())].softmax(0)


def _would(scene: Scene, templates: Templates, shares: Tensor) -> Tensor:
    """(mixtures, rows, columns): what clients with these shares of labels would release."""
    mixed = torch.einsum("mc,crk->mrk", shares, templates.each)
    return mixed if scene.quantity.root else scene.quantity.of(templates.weight, mixed)


def _profile(values: Tensor, signed: bool) -> Tensor:
    """Single values where signs tell classes apart, means of rows where there are none."""
    return values.flatten(-2) if signed else values.mean(-1)


def _likeness(would: Tensor, seen: Tensor, *, centred: bool) -> Tensor:
    if centred:
        would, seen = would - would.mean(1, keepdim=True), seen - seen.mean()
    return nn.functional.cosine_similarity(would, seen.unsqueeze(0), 1, eps=1e-30)


def templates_of(scene: Scene, shape: torch.Size, seed: int = 0) -> Templates:
    """What noise images of each class give, of the released matrix nearest to the output."""
    host, gen = scene.host, generator(seed, "noise images")
    model = scene.model().double().eval()
    sent = host.layout.shapes if scene.quantity.kind == "tune" else host.layout.prunable
    found = {n: p for n, p in model.named_parameters() if n in sent and p.dim() > 1}
    name, weight = list(found.items())[-1]
    rows = weight.flatten(1)
    columns = torch.randperm(rows.shape[1], generator=gen)[:_COLUMNS]
    images = torch.rand(_NOISE_IMAGES, *shape, generator=gen, dtype=torch.float64)
    assert host.task.classes is not None  # a classifier
    classes = host.task.classes(host.config)
    each = [_template(scene, model, weight, images, c)[:, columns] for c in range(classes)]
    head = name.rpartition(".")[0] in output_of(host.task, host.model)
    return Templates(name, columns, rows.detach()[:, columns], torch.stack(each), head)


def _template(scene: Scene, model: nn.Module, weight: Tensor, images: Tensor, label: int) -> Tensor:
    """Mean gradient of images with this label, or the mean of the squares of single ones."""
    pieces = images.split(1) if scene.quantity.root else (images,)
    total = torch.zeros_like(weight)
    for piece in pieces:
        batch = {"images": piece, "labels": torch.full((len(piece),), label)}
        (g,) = torch.autograd.grad(scene.host.task.loss(model, batch).total, [weight])
        total += g.square() if scene.quantity.root else g
    return (total / len(images)).flatten(1).detach()


def correlation(found: Tensor, truth: Tensor) -> float:
    """Pearson's, 0 where one of the two is constant."""
    pair = torch.stack([found.double(), truth.double()])
    if bool((pair.std(1) < 1e-12).any()):
        return 0.0
    return float(torch.corrcoef(pair)[0, 1])
