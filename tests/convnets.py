"""Small convolutional nets whose channels are coupled in every way that is recognised."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.structure.channels.groups import channel_groups
from fedprune.structure.layout import layout_of
from fedprune.tasks.networks import ConvNet

F = nn.functional


def conv(i: int, o: int, k: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


class Residual(nn.Module):
    """A stem, a block beside the stream, a strided one with a projection, the mean, two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(2, 6, bias=False), nn.BatchNorm2d(6)
        self.one, self.norm1, self.two, self.norm2 = (
            conv(6, 4), nn.BatchNorm2d(4), conv(4, 6), nn.BatchNorm2d(6),
        )  # fmt: skip
        self.three, self.norm3, self.side = conv(6, 5, stride=2), nn.BatchNorm2d(5), conv(6, 5, 1)
        self.side.stride = (2, 2)
        self.hidden, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.two(torch.relu(self.norm1(self.one(x))))))
        x = F.relu(self.norm3(self.three(x)) + self.side(x))
        return self.head(self.hidden(x.mean((2, 3))).relu())


class Depthwise(nn.Module):
    """MobileNet's bottleneck: 1x1 up, depthwise, gated by its means, 1x1 down; then flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act = conv(2, 8, 1), nn.PReLU(8)
        self.deep = conv(8, 8, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(8, 3, 1), nn.SiLU(), conv(3, 8, 1), nn.Sigmoid()
        )
        self.down, self.pool = conv(8, 4, 1, bias=False), nn.MaxPool2d(2)
        self.hidden, self.head = nn.Linear(4 * 9, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.deep(self.act(self.up(x)))))
        x = self.pool(self.down(x * self.squeeze(x)) * 0.5 + 1)
        return self.head(F.silu(self.hidden(x.view(x.size(0), -1))))


class Concat(nn.Module):
    """Two branches side by side, added to a third that is as wide; grouped normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = conv(2, 4), conv(2, 3, 1), conv(2, 7)
        self.norm = nn.GroupNorm(3, 6)
        self.mix, self.last = conv(7, 6), conv(6, 4)
        self.flat, self.hidden, self.head = nn.Flatten(), nn.Linear(4 * 36, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], dim=1) + self.both(x)
        x = self.last(torch.relu(self.norm(self.mix(torch.tanh(x)))))
        return self.head(self.hidden(self.flat(x)))


def _perceptron() -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(72, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(6, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: ConvNet(side=6, channels=(3, 4), hidden=5, classes=3),
    "residual": Residual,
    "depthwise": Depthwise,
    "concat": Concat,
    "perceptron": _perceptron,
}
CHANNELS = {
    "plain": {"features.0": 3, "features.4": 4},
    "residual": {"stem": 6, "one": 4, "three": 5},
    "depthwise": {"up": 8, "squeeze.1": 3, "down": 4},
    "concat": {"left": 4, "right": 3, "mix": 3, "last": 4},
    "perceptron": {"1": 8},
}
"""Path and number of channels of every group whose readers are prunable."""

OUTPUT = {"perceptron": "6"}


@functools.cache
def _trained(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        net = NETS[name]().double()
        for parameter in net.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        for _ in range(3):
            net(images(20) if name != "plain" else images(20)[:, :1])
    return net.eval()


def images(count: int = 5) -> Tensor:
    gen = torch.Generator().manual_seed(count)
    return torch.randn(count, 2, 6, 6, generator=gen, dtype=torch.float64) * 2 + 0.3


def net_of(name: str) -> tuple[nn.Module, Tensor, str]:
    """A fresh copy in eval mode, what it looks at, and its head of output."""
    seen = images() if name != "plain" else images()[:, :1]
    return copy.deepcopy(_trained(name)), seen, OUTPUT.get(name, "head")


def found(net: nn.Module, head: str = "head") -> dict[str, int]:
    """Path and number of channels of every group."""
    groups = channel_groups(net, layout_of(net, output=[head]).prunable)
    assert all(g.kind == "channel" for g in groups)
    return {g.path: len(g.parts[0].index) for g in groups}
