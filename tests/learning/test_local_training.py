import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedprune import TASKS, Loss, RunConfig, Shard, Task
from fedprune.client.host import Host, build_host
from fedprune.config.rates import learning_rate
from fedprune.engines.inline import inline_port
from fedprune.learning.averaging import averaged
from fedprune.learning.local_training import tune
from fedprune.learning.optimizers import OPTIMIZERS
from fedprune.learning.preparation import prepared
from fedprune.learning.steps import step_batches
from fedprune.protocol.messages import Question
from fedprune.protocol.models import dense_model
from fedprune.tasks.losses import classification_loss
from fedprune.tasks.networks import ConvNet
from fedprune.tasks.task import Part, batches
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import copied, digest, masked
from tests.runs import same, tiny

HARSH = {"weight_decay": 0.1, "clip": 0.5, "proximal": 0.3, "lr": 0.05}
ALONE = [{}, {"weight_decay": 0.1}, {"clip": 0.01}, {"proximal": 1.0}, HARSH]


def rows(n: int, seed: int = 0) -> Part:
    gen = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (n,), generator=gen)
    return {"images": torch.randn(n, 1, 8, 8, generator=gen), "labels": labels}


TASK = TASKS["digits"]


def steps_of(part: Part, size: int) -> Iterator[list[Part]]:
    """The part's batches in order, each a step."""
    yield from ([batch] for batch in batches(part, size))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ConvNet(side=8, channels=(4, 6), hidden=8, classes=10)


def half(model: nn.Module) -> dict[str, Tensor]:
    """Masks over half of every weight, a convolution of one filter emptied, the head too."""
    gen, named = torch.Generator().manual_seed(1), model.named_parameters()
    masks = {n: torch.rand(p.shape, generator=gen) < 0.5 for n, p in named if p.dim() > 1}
    masks["features.0.weight"][0] = False
    return masks


@pytest.mark.parametrize("changes", ALONE, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_weights_are_zero_after_every_step(optimizer, changes, monkeypatch):
    config = tiny(optimizer=optimizer, **changes)
    model = net()
    masks = half(model)
    load_into(model, masked(state_of(model), masks))
    start = copied(state_of(model))
    seen: list[int] = []

    def watched(parameters: Any, lr: float, config: RunConfig) -> torch.optim.Optimizer:
        made = original(parameters, lr, config)

        class Watched(type(made)):
            def step(self, closure=None):
                super().step(closure)
                seen.append(check(self))

        made.__class__ = Watched
        return made

    def check(made: torch.optim.Optimizer) -> int:
        states = 0
        for name, mask in masks.items():
            p, gone = model.get_parameter(name), ~mask
            assert not p.detach()[gone].any(), f"weights of {name}"
            assert not p.grad[gone].any(), f"gradients of {name}"
            for key, value in made.state[p].items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    states += 1
                    assert not value[gone].any(), f"{key} of {name}"
        return states

    original = OPTIMIZERS[optimizer]
    monkeypatch.setitem(OPTIMIZERS, optimizer, watched)
    tune(model, masks, steps_of(rows(32), 8), TASK, config.lr, config)
    assert len(seen) == 4
    assert all(states >= len(masks) for states in seen), "the optimizer does keep state"
    moved = [(model.get_parameter(n).detach() != start[n])[m] for n, m in masks.items()]
    assert all(m.float().mean() > 0.5 for m in moved), "what is kept does move"


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "keys",
    [
        *({"optimizer": name} for name in OPTIMIZERS),
        *(
            {"optimizer": "sgd", "momentum": m, "weight_decay": w}
            for m in (0, 0.9)
            for w in (0, 0.1)
        ),
    ],
    ids=str,
)
def test_tuning_is_torchs_own_loop_bit_for_bit(keys, accumulate):
    c = tiny(**{"weight_decay": 0.01, "clip": 0.0, **keys})
    ours, theirs = net(), net()
    steps = [list(batches(rows(20, seed), 10))[:accumulate] for seed in range(3)]
    tuned = tune(ours, {}, iter(steps), TASK, 0.05, c)
    made = OPTIMIZERS[c.optimizer](list(theirs.parameters()), 0.05, c)
    total = 0.0
    theirs.train()
    for step in steps:
        made.zero_grad()
        for b in step:
            loss = nn.functional.cross_entropy(theirs(b["images"]), b["labels"], reduction="sum")
            (loss / (10 * accumulate)).backward()
            total += loss.item()
        made.step()
    assert (tuned.loss, tuned.count) == (total, 30 * accumulate)
    assert digest(state_of(ours)) == digest(state_of(theirs))


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [
        ({"local_steps": 2}, [[8], [8]]),
        ({"local_steps": 5}, [[8], [8], [4], [8], [8]]),
        ({"local_epochs": 1}, [[8], [8], [4]]),
        ({"local_epochs": 3}, [[8], [8], [4]] * 3),
        ({"local_epochs": 2, "batch_size": 50}, [[20], [20]]),
        ({"local_steps": 3, "batch_size": 20}, [[20], [20], [20]]),
        ({"accumulate": 2, "local_steps": 2}, [[8, 8], [4]]),
        ({"accumulate": 2, "local_steps": 3}, [[8, 8], [4], [8, 8]]),
        ({"accumulate": 3, "local_steps": 2}, [[8, 8, 4], [8, 8, 4]]),
        ({"accumulate": 9, "local_steps": 1}, [[8, 8, 4]]),
        ({"accumulate": 2, "local_epochs": 2}, [[8, 8], [4], [8, 8], [4]]),
    ],
    ids=str,
)
def test_steps_batches_and_epochs_count(keys, sizes):
    config = tiny(**{"local_steps": 0, **keys})
    part = {"images": torch.arange(20.0), "labels": torch.arange(20)}
    taken = list(step_batches(part, config, torch.Generator().manual_seed(0)))
    assert [[len(b["labels"]) for b in step] for step in taken] == sizes
    rows = [b for step in taken for b in step]
    assert all(torch.equal(b["images"], b["labels"].float()) for b in rows), "rows stay together"
    drawn = torch.cat([b["labels"] for b in rows])
    epochs = [tuple(epoch.tolist()) for epoch in drawn.split(20)]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs), "every row once"
    assert len(set(epochs)) == len(epochs), "in another order"
    again = step_batches(part, config, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([b["labels"] for step in again for b in step]), drawn)


def test_a_frozen_parameter_stays_and_no_gradient_is_left_behind():
    model = net()
    model.get_parameter("hidden.weight").requires_grad_(False)
    start = copied(dict(model.named_parameters()))
    tune(model, {}, steps_of(rows(8), 4), TASK, 0.1, tiny(proximal=0.1))
    assert torch.equal(model.get_parameter("hidden.weight"), start["hidden.weight"])
    assert not torch.equal(model.get_parameter("head.weight"), start["head.weight"])
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_longer_gradient_than_the_clip_is_scaled_down():
    def moved(clip: float) -> Tensor:
        model = net()
        start = copied(state_of(model))
        config = tiny(clip=clip, momentum=0.0)
        tune(model, {}, steps_of(rows(8), 8), TASK, 1.0, config)
        names = [n for n, _ in model.named_parameters()]
        return torch.cat([(state_of(model)[n] - start[n]).flatten() for n in names])

    free = moved(0.0)
    assert free.norm() > 0.5
    assert torch.allclose(moved(0.1) / 0.1, free / free.norm(), atol=1e-4)
    assert torch.allclose(moved(100.0), free)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.4] * 4),
        ("linear", [0.4, 0.3, 0.2, 0.1]),
        ("cosine", [0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5))]),
    ],
)
def test_learning_rates_over_rounds(schedule, expected):
    config = tiny(rounds=4, lr=0.4, lr_schedule=schedule)
    assert [learning_rate(config, r) for r in (1, 2, 3, 4)] == pytest.approx(expected)


class Slope(nn.Module):
    """No norm, so that a sum over examples is a sum over examples while training too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(images)))


def unequal() -> Iterator[Part]:
    gen = torch.Generator().manual_seed(2)
    for p, n in enumerate((5, 40, 17)):
        labels = torch.randint(0, p + 1, (n,), generator=gen)
        yield {"images": torch.randn(n, 6, generator=gen) + p, "labels": labels}


@pytest.fixture
def slope(monkeypatch) -> Host:
    shards = [Shard(part, part, part) for part in unequal()]
    made = (lambda _config: Slope(), classification_loss, lambda _config: shards)
    monkeypatch.setitem(TASKS, "slope", Task("a slope", "accuracy", "examples", *made))
    keys = {"momentum": 0.0, "clip": 0.0, "local_epochs": 1, "local_steps": 0, "batch_size": 100}
    config = tiny(task="slope", clients=3, rounds=1, warmup=0, end=1, sparsity=0.0, **keys)
    return build_host(config)


@pytest.mark.parametrize("masked_", [False, True])
def test_one_federated_step_on_all_data_is_one_pooled_step(masked_, slope):
    masks = {"inner.weight": torch.rand(5, 6) < 0.4} if masked_ else {}
    host = replace(slope, layout=replace(slope.layout, prunable=tuple(masks)))
    start = masked(copied(state_of(slope.model)), masks)
    came = inline_port(host).ask(Question("tune", 1, start, masks, lr=0.3), [0, 1, 2])
    assert came.weight == 62.0
    after = averaged(start, came.total, came.weight, masks, host.layout, 1.0)
    parts = list(unequal())
    everyone = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    model = Slope()
    load_into(model, start)
    nn.functional.cross_entropy(model(everyone["images"]), everyone["labels"]).backward()
    for name, p in model.named_parameters():
        step = 0.3 * p.grad * masks.get(name, 1)
        assert torch.allclose(after[name], p - step, atol=1e-6), name
        assert step.abs().max() > 1e-4, "and it is a step"


def slope_after(step_sizes: int, optimizer: str) -> Slope:
    """Three steps of 16 rows, each in batches of at most so many rows."""
    torch.manual_seed(0)
    model = Slope()
    gen = torch.Generator().manual_seed(3)
    part = {"images": torch.randn(48, 6, generator=gen), "labels": torch.arange(48) % 3}
    config = tiny(optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else None)
    steps = (list(batches(step, step_sizes)) for (step,) in steps_of(part, 16))
    assert tune(model, {}, steps, TASK, 0.1, config).count == 48
    return model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("size", [8, 6, 1])
def test_a_step_of_several_batches_is_a_step_of_one(size, optimizer):
    """Of 6, 6 and 4 rows, too: the mean is over the labels of the step."""
    whole, parts = slope_after(16, optimizer), slope_after(size, optimizer)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        # Adam divides by the gradient's size, which makes a small one's rounding large.
        assert torch.allclose(p, q, atol=1e-6 if optimizer == "sgd" else 1e-4)


def test_bf16_computes_in_bf16_and_leaves_float32():
    seen: set[torch.dtype] = set()

    def loss(model: nn.Module, batch: Part) -> Loss:
        seen.add(model(batch["images"]).dtype)
        return TASK.loss(model, batch)

    moved = {}
    for precision in ("fp32", "bf16"):
        model = net()
        masks = half(model)
        load_into(model, masked(state_of(model), masks))
        config = tiny(precision=precision)
        tune(model, masks, steps_of(rows(32), 8), replace(TASK, loss=loss), 0.1, config)
        assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
        seen.clear()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not any(model.get_parameter(n).detach()[~m].any() for n, m in masks.items())
        moved[precision] = copied(state_of(model))
    for name, w in moved["fp32"].items():
        assert torch.allclose(w, moved["bf16"][name], atol=0.05), name
    assert not same(moved["fp32"], moved["bf16"])


def test_recomputed_activations_give_the_same_step():
    ids = torch.randint(3, 60, (4, 33), generator=torch.Generator().manual_seed(0))
    steps_on = [[{"inputs": ids[:, :-1], "labels": ids[:, 1:]}]]
    keys = {"task": "shakespeare", "optimizer": "sgd", "clip": 0.0}
    small_llama = dense_model(tiny(task="shakespeare"))
    layer = next(m for m in small_llama.modules() if type(m).__name__ == "LlamaMLP")
    calls: list[int] = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    steps = {}
    for checkpointing in (False, True):
        config = tiny(**keys, checkpointing=checkpointing)
        model = copy.deepcopy(small_llama)
        calls.clear()
        called = prepared(model, config)
        assert called is model
        tune(model, {}, iter(steps_on), TASKS["shakespeare"], 0.1, config, called=called)
        assert len(calls) == (2 if checkpointing else 1), "forward, and again while going back"
        steps[checkpointing] = copied(state_of(model))
    for name, w in steps[False].items():
        assert torch.allclose(w, steps[True][name], atol=1e-6), name
    assert not same(steps[True], state_of(small_llama))


def test_a_model_that_keeps_its_activations_is_refused():
    with pytest.raises(ValueError, match=r"^checkpointing=True: ConvNet .*; allowed: false") as e:
        prepared(net(), tiny(checkpointing=True))
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_compiled_model_takes_the_same_steps(monkeypatch):
    """As it is traced, with its gradients; what makes C++ of that is torch's, and takes long."""
    traced = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    keys = {"momentum": 0.0, "clip": 0.0}
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        config = tiny(**keys, compile=compiled)
        masks = {"1.weight": torch.rand(10, 64) < 0.5}
        load_into(model, masked(state_of(model), masks))
        called = prepared(model, config)
        assert (called is model) == (not compiled)
        tune(model, masks, steps_of(rows(32), 8), TASK, 0.1, config, called=called)
        assert not any(model.get_parameter(n).detach()[~m].any() for n, m in masks.items())
        ends.append(copied(state_of(model)))
    for name, w in ends[0].items():
        assert torch.allclose(w, ends[1][name], atol=1e-4), name
