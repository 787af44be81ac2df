from collections.abc import Callable
from typing import Any

import pytest
import torch
from convnets import CHANNELS, NETS, conv, found, net_of
from modules import module
from torch import Tensor, nn

from fedprune.structure.channels.groups import channel_groups
from fedprune.structure.layout import layout_of

f = nn.functional


@pytest.mark.parametrize("name", NETS)
def test_groups_are_counted_right(name):
    net, _, head = net_of(name)
    assert found(net, head) == CHANNELS[name]


def odd(between: Callable[[Tensor], Tensor], width: int) -> nn.Module:
    """Two convolutions, what happens to the channels between them, and a head."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.second(self.between(self.first(x)))
        return self.head(self.last(x.mean((2, 3))))

    layers = {"first": conv(2, 4), "between": between, "second": conv(width, 4)}
    return module(forward, **layers, last=nn.Linear(4, 5), head=nn.Linear(5, 2))


SCALE = nn.Parameter(torch.ones(1, 4, 1, 1))


@pytest.mark.parametrize(
    ("between", "width", "safe"),
    [
        (nn.ReLU(), 4, True),
        (nn.GroupNorm(2, 4), 4, True),
        (nn.GroupNorm(1, 4), 4, False),  # all channels are normalised together
        (nn.GroupNorm(4, 4), 4, True),
        (nn.LayerNorm((4, 6, 6)), 4, False),
        (conv(4, 4, groups=2), 4, False),
        (conv(4, 8, groups=4), 8, False),
        (nn.InstanceNorm2d(4, affine=True), 4, True),
        (nn.Softmax(dim=1), 4, False),
        (lambda x: f.interpolate(torch.max_pool2d(x, 2), scale_factor=2), 4, True),
        (lambda x: f.max_pool2d(x, 3, 1, return_indices=True)[0], 4, False),
        (nn.PixelShuffle(2), 1, False),
        (module(lambda self, x: x * self.scale, scale=SCALE), 4, False),
        (lambda x: x.flip(1), 4, False),
        (lambda x: x[:, :3], 3, False),
        (lambda x: x * x.size(1) ** -0.5, 4, False),
        (lambda x: x.view(x.size(0), 4, 6, 6), 4, False),
        (lambda x: x / (x + 1.0), 4, False),  # a masked channel would divide by what is left
        (lambda x: x / 2.0 + 1, 4, True),
        (lambda x: x * torch.sigmoid(x), 4, True),
        (lambda x: torch.cat([x, x], 1), 8, True),
        (lambda x: x + x.mean((2, 3), keepdim=True), 4, True),
        (lambda x: x + x.mean(1, keepdim=True), 4, False),
    ],
)
def test_an_operation_that_is_not_known_fixes_what_it_meets(between, width, safe):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = odd(between, width).eval()
    groups = found(net)
    assert groups.pop("second") == 4
    assert bool(groups) is safe


def branching(self: Any, x: Tensor) -> Tensor:
    return self.second(self.first(x)) if x.sum() > 0 else self.second(-self.first(x))


def test_what_cannot_be_traced_has_no_channels_and_keeps_its_modes():
    net = module(branching, first=nn.Linear(3, 4), second=nn.Linear(4, 2))
    net.first.eval()
    assert found(net, "second") == {}
    assert [net.training, net.first.training, net.second.training] == [True, False, True]


def both_heads(self: Any, x: Tensor) -> Tensor:
    """In training another head reads the same channels, in a way that is not known."""
    x = self.first(x)
    out = self.head(self.second(x))
    return out + x.cumsum(1).sum() if self.training else out


def test_both_modes_are_looked_at():
    layers = {"first": nn.Linear(3, 4), "second": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    assert found(module(both_heads, **layers)) == {}


def twice(self: Any, x: Tensor) -> Tensor:
    return self.head((self.c(self.a(x)) + self.c(self.b(x))).mean((2, 3)))


def test_a_layer_that_is_called_twice_couples_what_it_reads():
    net = module(twice, a=conv(2, 3), b=conv(2, 3), c=conv(3, 2), head=nn.Linear(2, 2))
    groups = channel_groups(net, layout_of(net, output=["head"]).prunable)
    assert [(g.path, [p.tensor for p in g.parts]) for g in groups] == [
        ("a", ["a.weight", "b.weight", "c.weight"])
    ]
    net.b.weight = net.a.weight  # tied weights of two layers: not cut
    assert found(net) == {}


def test_a_reader_that_is_spared_keeps_its_channels():
    net, _, _ = net_of("plain")
    layout = layout_of(net, output=["head"], exclude=["hidden.*"])
    assert [g.path for g in layout.structure.groups] == ["features.0"]
    producer = layout_of(net, output=["head"], exclude=["features.0.*"]).structure.groups[0]
    assert [(p.tensor, p.axis) for p in producer.parts] == [("features.4.weight", "column")]


def test_columns_are_a_kernel_or_a_picture_wide():
    net, _, _ = net_of("plain")
    first, second = channel_groups(net, layout_of(net, output=["head"]).prunable)
    assert [(p.tensor, p.axis, list(p.index.shape)) for p in (*first.parts, *second.parts)] == [
        ("features.0.weight", "row", [3, 1]),
        ("features.4.weight", "column", [3, 9]),
        ("features.4.weight", "row", [4, 1]),
        ("hidden.weight", "column", [4, 1]),
    ]
    assert first.parts[1].index[1].tolist() == list(range(9, 18))


def functional(self: Any, x: Tensor) -> Tensor:
    """All in functions, as many write it: two convolutions, flattened by its sizes, two layers."""
    x = f.max_pool2d(f.relu(self.one(x)), 2)
    x = f.leaky_relu(f.dropout(self.two(x), training=self.training), 0.1)
    return self.head(f.elu(self.fc(x.reshape(x.shape[0], -1))))


def reading(self: Any, x: Tensor) -> Tensor:
    """A parameter of a layer is used beside it, before it is called."""
    x = x * self.one.weight.view(12, -1)[0, 0]
    return functional(self, x + f.conv2d(x, self.one.weight[:2], padding=1))


def four(forward: Callable[..., Tensor]) -> nn.Module:
    layers = {"one": conv(2, 6), "two": conv(6, 5), "fc": nn.Linear(5 * 9, 4)}
    return module(forward, **layers, head=nn.Linear(4, 3))


def test_functions_are_followed_as_layers_are():
    net = four(functional)
    assert found(net) == {"one": 6, "two": 5}
    net.forward = lambda x: functional(net, x) + net.one(x).mean()
    assert found(net) == {}, "not what tracing looks at"


def test_hooks_are_not_seen_by_tracing():
    net = four(functional)
    net.two.register_forward_hook(lambda _layer, _args, out: out.flip(1))
    assert found(net) == {}


def test_a_layer_whose_weight_another_reads_is_not_cut():
    assert found(four(reading)) == {"two": 5}


def test_instances_are_normalised_channel_by_channel_in_maps_only():
    rows = nn.Sequential(nn.Linear(3, 4), nn.InstanceNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert found(rows, "3") == {}
