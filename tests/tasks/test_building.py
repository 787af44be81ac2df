"""A task's model made ready: wrappers, lists, lazy layers, number types, constant buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedprune import TASKS, RunConfig, Shard, Task, federate, load
from fedprune.tasks.building import built
from fedprune.tasks.losses import classification_loss
from fedprune.tensors.models import frozen_of, state_of
from fedprune.tensors.named import as_bytes, digest


def _part(rows: int, seed: int) -> dict[str, Tensor]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return {"images": x, "labels": (x[:, 0] > 0).long()}


def task_of(model: Callable[[], Any], *, dummy: bool = True, output: tuple[str, ...] = ()) -> Task:
    example = {"images": torch.zeros(1, 6), "labels": torch.zeros(1, dtype=torch.long)}
    return Task(
        summary="own",
        metric="accuracy",
        unit="examples",
        model=lambda _: model(),
        loss=classification_loss,
        shards=lambda c: [
            Shard(_part(20, p), _part(5, p + 50), _part(5, p + 90)) for p in range(c.clients)
        ],
        output=output,
        dummy=(lambda _: example) if dummy else None,
    )


def ready(model: Callable[[], Any], **options: Any) -> Any:
    return built(task_of(model, **options), RunConfig())


class Masked(nn.Module):
    """A mask and a table that stay, a running mean that moves, and buffers of every other kind."""

    def __init__(self, least: float = float("-inf"), *, keeps: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.keeps = nn.Linear(6, 6), nn.Linear(6, 2), keeps
        self.register_buffer("mask", torch.tensor([0.0, least, 0.0, 0.0, 0.0, least]))
        self.register_buffer("waves", torch.sin(torch.arange(6.0)))
        self.register_buffer("unknown", torch.full((2,), float("nan")))
        self.register_buffer("sixteen", torch.ones(2, dtype=torch.float16))
        self.register_buffer("places", torch.arange(6))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + self.waves
        if self.training:
            self.mean.mul_(0.5).add_(0.5 * y.detach().mean(0))
        return self.head((y - self.mean + self.mask).sigmoid())


def test_float_buffers_that_training_leaves_alone_are_no_part_of_the_state():
    model = ready(Masked)
    assert [n for n in state_of(model) if "." not in n] == ["mean"]
    assert set(frozen_of(model)) == {"mask", "waves", "unknown", "sixteen"}
    assert not model.mean.any(), "tried out on a copy"
    assert model.training


def test_without_an_example_only_what_no_average_could_hold_is_a_constant():
    model = ready(Masked, dummy=False)
    assert {n for n in state_of(model) if "." not in n} == {"mean", "waves", "sixteen"}
    assert "mask" in state_of(ready(lambda: Masked(-1e4), dummy=False))
    assert "mask" not in state_of(ready(lambda: Masked(-1e9), dummy=False))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("least", "options"),
    [
        (float("-inf"), {"wire": "fp16"}),
        (-1e9, {"wire": "bf16", "uplink": "int8"}),
        (-1e9, {"dp": "client", "dp_noise": 1.0}),
    ],
)
def test_a_run_leaves_constants_bit_for_bit_and_averages_what_moves(
    least, options, tmp_path, monkeypatch
):
    monkeypatch.setitem(TASKS, "own", task_of(lambda: Masked(least), output=("head",)))
    config = RunConfig(task="own", clients=3, rounds=3, warmup=1, engine="inline", **options)
    folders = [tmp_path / "run", tmp_path / "run" / "model"] if least < -1e9 else []
    result = federate(config, folder=folders[0] if folders else None)
    assert result.state.book.failed == 0
    assert result.summary["rounds_completed"] == 3
    fresh, model = Masked(least), result.model
    for name in ("mask", "waves", "unknown", "sixteen"):
        assert as_bytes(model.get_buffer(name)) == as_bytes(fresh.get_buffer(name)), name
    assert model.get_buffer("mean").any()
    for folder in folders:
        again = load(folder)
        assert digest(again.state_dict()) == digest(model.state_dict())


def test_what_moves_and_does_not_average_is_refused():
    class Least(Masked):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.mask.add_(1.0)
            return super().forward(x)

    with pytest.raises(ValueError, match=r"buffer mask changes in training .* allowed:"):
        ready(Least)


def _lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))


def test_lazy_layers_get_their_shapes_from_the_example():
    torch.manual_seed(3)
    first = ready(_lazy)
    torch.manual_seed(3)
    assert digest(first.state_dict()) == digest(ready(_lazy).state_dict())
    assert type(first[0]) is nn.Linear
    assert first[0].weight.shape == (4, 6)
    assert int(first[1].num_batches_tracked) == 0, "seen in eval mode"


@pytest.mark.slow
def test_wrappers_that_only_change_how_a_model_is_computed_are_taken_off():
    inner = nn.Sequential(nn.Linear(6, 2))
    assert ready(lambda: torch.compile(nn.DataParallel(inner))) is inner


def _hidden(held: object) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 2))
    model.held = held  # type: ignore[assignment]
    return model


def _typed(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2, dtype=dtype))


def _frozen(values: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 2))
    model.own = nn.Parameter(values, requires_grad=False)
    return model


_OwnNorm = type("_OwnNorm", (nn.BatchNorm3d,), {})


def _normed(kind: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 2))
    model.norm = nn.ModuleList([kind(2, track_running_stats=False)])
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: _hidden([nn.Linear(6, 2)]), "held holds a Linear in a list"),
        (lambda: _hidden({"a": (nn.Linear(6, 2),)}), "held holds a Linear in a dict"),
        (lambda: _hidden([nn.Parameter(torch.ones(2))]), "held holds a Parameter in a list"),
        (lambda: _typed(torch.float64), "1.weight is float64"),
        (lambda: _typed(torch.bfloat16), "1.weight is bfloat16"),
        (lambda: _typed(torch.complex64), "1.weight is complex64"),
        (lambda: _frozen(torch.tensor([1j])), "own is complex64 and holds numbers"),
        (lambda: _frozen(torch.tensor([2**24 + 1])), "own is int64 and holds numbers"),
        (lambda: {}["size"], "model function fails: KeyError"),
        (lambda: _normed(nn.BatchNorm1d), r"norm\.0 is a BatchNorm1d without running statistics"),
        (lambda: _normed(nn.BatchNorm2d), r"norm\.0 is a BatchNorm2d without"),
        (lambda: _normed(nn.SyncBatchNorm), r"norm\.0 is a SyncBatchNorm without"),
        (lambda: _normed(_OwnNorm), r"norm\.0 is a _OwnNorm without"),
        (lambda: None, "gives back a NoneType"),
    ],
)
def test_what_cannot_be_averaged_or_is_no_part_of_the_model_is_one_line(model, said):
    with pytest.raises(ValueError, match=said) as caught:
        ready(model)
    assert "allowed:" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dummy", [False, True])
def test_a_lazy_layer_that_no_example_reaches_is_one_line(dummy):
    def model() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 2))
        object.__setattr__(net, "forward", lambda x: net[0](x))
        net.add_module("aside", nn.LazyLinear(3))
        return net

    with pytest.raises(ValueError, match=r"model: aside.weight is lazy and has no shape.*allowed:"):
        ready(model, dummy=dummy)


def test_what_looks_like_it_and_is_not_is_fine():
    model = nn.Sequential(nn.Linear(6, 2))
    model.order = [model[0], nn.ReLU(), "text", None]  # type: ignore[assignment]
    assert ready(lambda: model) is model
    assert ready(lambda: _frozen(torch.arange(5))).own.dtype == torch.int64
    for norm in (nn.InstanceNorm1d, nn.InstanceNorm2d):  # of single examples: without statistics
        assert ready(lambda norm=norm: _normed(norm)) is not None
