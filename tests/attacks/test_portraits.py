"""A model that knows one pattern a class shows it; one that knows nothing shows nothing."""

import torch
from torch import Tensor, nn

from fedprune.attacks.portraits import class_means, portraits, resemblance

SHAPE = torch.Size([1, 4, 4])


class Matcher(nn.Module):
    """Logits are the overlap with a pattern for each class."""

    def __init__(self, patterns: Tensor) -> None:
        super().__init__()
        self.patterns = nn.Parameter(patterns)

    def forward(self, images: Tensor) -> Tensor:
        return 8 * images.flatten(1) @ (self.patterns.flatten(1) - 0.5).t()


def patterns() -> Tensor:
    out = torch.zeros(3, *SHAPE)
    for c in range(3):
        out[c, 0, c] = 1.0
    return out


def test_portraits_resemble_what_the_model_knows(monkeypatch):
    monkeypatch.setattr("fedprune.attacks.portraits.SMOOTH", 0.1)  # patterns of one pixel are rough
    model = Matcher(patterns())
    before = model.patterns.detach().clone()
    like = resemblance(portraits(model, 3, SHAPE), patterns())
    assert torch.equal(like.argmax(1), torch.arange(3))
    assert float(like.diagonal().min()) > 0.6
    assert torch.equal(model.patterns.detach(), before)


def test_a_model_that_knows_nothing_shows_nothing():
    like = resemblance(portraits(Matcher(torch.full((3, *SHAPE), 0.5)), 3, SHAPE), patterns())
    assert float(like.abs().max()) < 1e-6


def test_class_means():
    images = torch.stack([torch.full(SHAPE, v) for v in (0.0, 1.0, 0.5)])
    means = class_means(images, torch.tensor([0, 0, 1]), 2)
    assert means.flatten(1)[:, 0].tolist() == [0.5, 0.5]
