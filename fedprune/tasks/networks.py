"""The small models that the built-in tasks train from scratch."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Two 3x3 convolutions with BatchNorm and ReLU, each halving the side, then two linear layers.

    Input (B, inputs, side, side), output (B, classes).
    """

    def __init__(
        self, side: int, channels: tuple[int, int], hidden: int, classes: int, inputs: int = 1
    ) -> None:
        super().__init__()
        first, second = channels
        self.features = nn.Sequential(
            nn.Conv2d(inputs, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(second * (side // 4) ** 2, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(nn.functional.relu(self.hidden(self.features(images))))
        return logits


class Perceptron(nn.Module):
    """Two linear layers with ReLU on the flat image and a linear head: no BatchNorm.

    Input (B, inputs, side, side), output (B, classes).
    """

    def __init__(self, side: int, hidden: tuple[int, int], classes: int, inputs: int = 1) -> None:
        super().__init__()
        first, second = hidden
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs * side * side, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
        )
        self.head = nn.Linear(second, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits
