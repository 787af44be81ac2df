"""What a finished model shows of the classes that it was trained on.

Model inversion (Fredrikson, Jha and Ristenpart 2015, doi 10.1145/2810103.2813677): the image that
the model is surest of. It is a picture of a class, not of anybody's example.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_STEPS = 150
SMOOTH = 2.0  # Factor of the total variation


def portraits(model: nn.Module, classes: int, shape: torch.Size) -> Tensor:
    """For each class the image in 0..1 that the model is surest of, (classes, *shape).

    Adam from mid-grey on cross-entropy, total variation and a pull to black.

    `model`: from images to logits; it is left as it is.
    """
    known = copy.deepcopy(model).eval()
    images = torch.full((classes, *shape), 0.5).requires_grad_()
    labels = torch.arange(classes)
    optimizer = torch.optim.Adam([images], lr=0.05)
    for _ in range(_STEPS):
        rough = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((1, 2, 3)).sum()
        rough = rough + (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)).sum()
        unsure = nn.functional.cross_entropy(known(images), labels, reduction="sum")
        loss = unsure + SMOOTH * rough + images.mean((1, 2, 3)).sum()
        (images.grad,) = torch.autograd.grad(loss, [images])
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()


def class_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean image of each class."""
    return torch.stack([images[labels == c].mean(0) for c in range(classes)])


def resemblance(made: Tensor, means: Tensor) -> Tensor:
    """(classes, classes): correlation of each portrait with the mean image of each class."""
    left = made.double().flatten(1) - made.double().flatten(1).mean(1, keepdim=True)
    right = means.double().flatten(1) - means.double().flatten(1).mean(1, keepdim=True)
    unit = [nn.functional.normalize(side, dim=1, eps=1e-12) for side in (left, right)]
    return unit[0] @ unit[1].t()
