"""Private images by search: those whose release would look most like what was seen.

Gradient matching (Zhu et al. 2019, arXiv 1906.08935) with the cosine of Geiping et al. 2020, arXiv
2003.14053, eq. 4, total variation, Adam on signs, and the labels known. Departure: it is the
released quantity that is matched, |g| or w·g or a mask, not the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedprune.attacks.exposed import Exposed
from fedprune.attacks.scene import Scene
from fedprune.randomness import generator
from fedprune.structure.layers import parameters_of
from fedprune.tasks.task import Part, batches


@dataclass(frozen=True)
class Search:
    """How images are searched for."""

    steps: int = 200  # of Adam
    restarts: int = 2  # searches from new noise; the one that matches best counts
    smooth: float = 0.01  # factor of the total variation


def matched(scene: Scene, seen: Exposed, part: Part, search: Search, seed: int = 0) -> Tensor:
    """Images in 0..1 of the shape of the part's, (examples, *shape).

    The observer is given the labels of the part; its images are not looked at. For a sum of
    several clients it searches for the images of all of them, the part being all of theirs.

    Raises:
        ValueError: the quantity is not of gradients, so that there is nothing to match.
    """
    scene.quantity.check_matchable()
    found = [_searched(scene, seen, part, search, seed, i) for i in range(search.restarts)]
    best = min(range(len(found)), key=lambda i: found[i][0])
    return found[best][1]


def _searched(
    scene: Scene, seen: Exposed, part: Part, search: Search, seed: int, start: int
) -> tuple[float, Tensor]:
    """What is left of the mismatch, and the images."""
    model = scene.model().train(scene.quantity.kind == "tune")  # as clients use it
    names = [n for n, _ in model.named_parameters() if n in seen.values]
    kept = {n: seen.masks.get(n) for n in names}
    target = torch.cat([_flat(seen.values[n].float(), kept[n]) for n in names])
    gen = generator(seed, "search", start)
    images = torch.rand(part["images"].shape, generator=gen).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, search.steps, 0.01)
    missed = 0.0
    for _ in range(search.steps):
        optimizer.zero_grad()
        released = _released(scene, model, names, {**part, "images": images})
        would = torch.cat([_flat(released[n], kept[n]) for n in names])
        miss = 1 - likeness(would, target, centred=scene.quantity.votes)
        missed = float(miss.detach())
        (images.grad,) = torch.autograd.grad(miss + search.smooth * _variation(images), [images])
        images.grad = images.grad.sign()
        optimizer.step()
        decay.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return missed, images.detach()


def _released(scene: Scene, model: nn.Module, names: list[str], batch: Part) -> dict[str, Tensor]:
    """What a client with this batch would release, up to a factor, differentiable by its images."""
    parameters, total = parameters_of(model, names), dict[str, Tensor]()
    for part in batches(batch, 1) if scene.quantity.root else [batch]:
        found = _gradients(scene, model, parameters, part)
        for (n, p), g in zip(parameters.items(), found, strict=True):
            each = scene.quantity.of(p.detach(), g)
            total[n] = each + total[n] if n in total else each
    return total


def _gradients(
    scene: Scene, model: nn.Module, parameters: dict[str, nn.Parameter], batch: Part
) -> tuple[Tensor, ...]:
    # The running statistics of a BatchNorm in training would otherwise move with every look.
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    called = _Called(model, buffers)
    loss = scene.host.task.loss(called, batch).total
    return torch.autograd.grad(loss, list(parameters.values()), create_graph=True)


class _Called(nn.Module):
    """A model that is called with buffers of its own."""

    def __init__(self, model: nn.Module, buffers: dict[str, Tensor]) -> None:
        super().__init__()
        self.call = (model, buffers)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        model, buffers = self.call
        out: Tensor = functional_call(model, buffers, args, kwargs)
        return out


def _flat(values: Tensor, kept: Tensor | None) -> Tensor:
    return values.flatten() if kept is None else values[kept]


def likeness(would: Tensor, seen: Tensor, *, centred: bool) -> Tensor:
    """The cosine of what would be released and what is seen, both flat, without their means."""
    if centred:
        would, seen = would - would.mean(), seen - seen.mean()
    return nn.functional.cosine_similarity(would, seen, 0, eps=1e-30)


def _variation(images: Tensor) -> Tensor:
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return down + (images[..., 1:] - images[..., :-1]).abs().mean()
