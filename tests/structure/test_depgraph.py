import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from convnets import NETS, conv, images, net_of
from families import family
from modules import module
from torch import Tensor, nn

from fedprune.structure import depgraph
from fedprune.structure.channels.groups import TRACED, bundles_of, channel_groups, roles_of
from fedprune.structure.edits import Edit
from fedprune.structure.groups import Group
from fedprune.structure.layout import layout_of
from fedprune.structure.surgery import reshaped
from fedprune.tasks.losses import classification_loss
from fedprune.tasks.task import Loss, Part

pytest.importorskip("torch_pruning")


def loss(model: nn.Module, part: Part) -> Tensor:
    return classification_loss(model, part).total


def like(seen: Tensor) -> Part:
    return {"images": torch.zeros_like(seen[:1]), "labels": torch.zeros(1, dtype=torch.long)}


@pytest.mark.parametrize("name", NETS)
def test_both_ways_find_the_same_channels_where_both_can(name):
    net, seen, head = net_of(name)
    one = channel_groups(net, layout_of(net, output=[head]).prunable)
    depgraph.recognise(net, loss, like(seen))
    other = channel_groups(net, layout_of(net, output=[head]).prunable)
    assert told(one) == told(other) != []


def told(groups: Sequence[Group]) -> list[object]:
    return [(g.path, [(p.tensor, p.axis, p.index.tolist()) for p in g.parts]) for g in groups]


def both_ways(self: Any, x: Tensor) -> Tensor:
    """What it does with its maps depends on them."""
    maps = self.norm(self.first(x)).relu()
    maps = self.bright(maps) if float(x.mean()) > 0 else self.dark(maps)
    return self.head(self.hidden(maps.mean((2, 3))))


def branching(forward: Callable[..., Tensor] = both_ways) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        convolutions = {"first": conv(2, 6), "norm": nn.BatchNorm2d(6)}
        convolutions |= {"bright": conv(6, 4), "dark": conv(6, 4, 1)}
        return module(forward, **convolutions, hidden=nn.Linear(4, 5), head=nn.Linear(5, 3))


def test_a_net_that_branches_on_its_data_is_cut_on_both_branches():
    net = branching()
    assert dict(roles_of(net)) == {}
    before = {n: p.clone() for n, p in net.named_parameters()}
    depgraph.recognise(net, loss, like(images()))
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())
    groups = channel_groups(net, layout_of(net, output=["head"]).prunable)
    assert [g.path for g in groups] == ["first", "bright"]
    tensors = [[p.tensor.split(".")[0] for p in g.parts] for g in groups]
    assert tensors == [["first", "bright", "dark"], ["bright", "dark", "hidden"]]
    with torch.no_grad():
        net = net.double().eval()
        for layer in (net.bright, net.dark):
            layer.weight[:, [1, 4]] = 0.0
        net.hidden.weight[:, 2] = 0.0
        want = [net(sign * images().abs()) for sign in (1, -1)]
        edits = [Edit("channel", "first", (0, 2, 3, 5)), Edit("channel", "bright", (0, 1, 3))]
        small = reshaped(net, edits)
        got = [small(sign * images().abs()) for sign in (1, -1)]
    assert small.dark.weight.shape == (3, 4, 1, 1)
    assert all((g - w).abs().max() <= 1e-9 for g, w in zip(got, want, strict=True))
    assert len(bundles_of(roles_of(small))[0].channels) == 4


def test_what_is_followed_wrongly_is_not_believed():
    """Torch-pruning takes a flip of the channels for an operation on each by itself."""
    net = module(
        lambda self, x: self.head(self.c(self.b(self.a(x)).flip(1)).mean((2, 3))),
        **{"a": conv(2, 4), "b": conv(4, 4), "c": conv(4, 4), "head": nn.Linear(4, 2)},
    )
    depgraph.recognise(net, loss, like(images()))
    paths = [bundle.path for bundle in bundles_of(roles_of(net))]
    assert "a" in paths
    assert "b" not in paths


def test_a_layer_that_no_example_reaches_is_an_error():
    net = branching(lambda self, x: both_ways(self, x.abs() + 1))
    with pytest.raises(ValueError, match="no random example reached dark; allowed: auto"):
        depgraph.recognise(net, loss, like(images()))


def test_families_are_refused():
    with pytest.raises(ValueError, match="LlamaAttention is known by itself; allowed: auto"):
        depgraph.recognise(family("llama").model, loss, {})


def test_what_does_not_end_is_refused(monkeypatch):
    over = threading.Event()

    def endless(*_: object) -> dict[str, object]:
        over.wait()
        return {}

    monkeypatch.setattr(depgraph, "traced", endless)
    monkeypatch.setattr(depgraph, "SECONDS", 0.01)
    net = branching()
    with pytest.raises(ValueError, match=r"did not end in 0\.01 s"):
        depgraph.recognise(net, loss, like(images()))
    over.set()
    assert not hasattr(net, TRACED)


def test_an_error_of_the_user_s_own_is_told():
    def broken(_model: nn.Module, _batch: Part) -> Loss:
        raise RuntimeError("no such column")

    with pytest.raises(ValueError, match="RuntimeError: no such column; allowed: auto"):
        depgraph.recognise(branching(), broken, like(images()))
