"""Noise that hides examples: sums of bounded statistics and steps of DP-SGD, checked by loops."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedprune import SCORES, RunConfig, Task
from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.client.dp_sgd import noised_statistics, noisy_steps, poisson_steps, values_in
from fedprune.client.host import Host
from fedprune.client.probing import client_probe
from fedprune.config import with_values
from fedprune.learning.local_training import tune
from fedprune.learning.optimizers import OPTIMIZERS
from fedprune.privacy.clipping import clipped, scaled
from fedprune.privacy.noise import seeded_source
from fedprune.protocol.form import fitting
from fedprune.protocol.limits import source_for
from fedprune.protocol.messages import Question
from fedprune.protocol.models import dense_model, layout_for
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.task import Loss, Part, batches, examples
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Tensors, copied, count_kept, full_masks, gathered, masked
from tests.runs import house_of, tiny

TASK, MLP = TASKS["digits"], tiny(model="mlp")


def noised(config: RunConfig, **keys: Any) -> RunConfig:
    """With noise by example; what else its rules ask for is not what is tested here."""
    given = {"dp": "example", "dp_noise": 0.0, "dp_score_noise": 0.0, "dp_rate": 0.5, **keys}
    return with_values(config, given)


def rows(n: int, seed: int = 0) -> Part:
    gen = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (n,), generator=gen)
    return {"images": torch.randn(n, 1, 8, 8, generator=gen), "labels": labels}


def seat_of(host: Host, config: RunConfig, part: Part) -> ClientContext:
    shard = replace(host.shards[0], train=part)
    cpu = torch.device("cpu")
    return ClientContext(0, shard, host.model, host.task, config, host.layout, cpu, host.model)


def some_masks(weights: Tensors, names: tuple[str, ...]) -> Tensors:
    gen = torch.Generator().manual_seed(1)
    return {n: torch.rand(weights[n].shape, generator=gen) < 0.6 for n in names}


def asked(host: Host, score: str, **more: Any) -> Question:
    masks = some_masks(state_of(host.model), host.layout.prunable)
    weights = masked(copied(state_of(host.model)), masks)
    load_into(host.model.eval(), weights)
    return Question("score", 3, weights, masks, score, **more)


# What prunes whole heads or blocks needs models that have some, and is asked in the same way.
PLAIN = [n for n, s in SCORES.items() if s.asks and s.additive and not s.units and n != "grasp"]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("score", PLAIN)
def test_statistics_are_the_sum_of_bounded_ones_of_single_examples(score, exact):
    keys = {"probes": 4} if score == "perturbation" else {}
    host = house_of(MLP)
    config = noised(MLP, dp_score_clip=None if exact else 0.05, **keys)
    question, part = asked(host, score), rows(7)
    client = seat_of(host, config, part)
    probe = client_probe(question, client, host.layout.prunable, {})
    found = noised_statistics(question, client, probe)
    ask = SCORES[score].asks[0]
    shapes = ask.shapes(host.layout, host.layout.prunable, "weight", config.probes or 0)
    assert {n: t.shape for n, t in found.items()} == shapes
    fits = fitting(shapes, question.masks)
    right = torch.zeros(values_in(shapes, fits), dtype=torch.float64)
    for row in batches(part, 1):
        flat = gathered(copied(ask.collect(replace(probe, batches=[row]))), fits)
        right += scaled(flat, 1.0) if exact else clipped(flat, 0.05)
    assert torch.allclose(gathered(found, fits), right, rtol=0, atol=1e-6)


def test_a_users_own_score_is_asked_example_by_example(monkeypatch):
    host = house_of(MLP)
    question = asked(host, "taylor")
    sizes: list[int] = []

    def collect(probe: Any) -> Tensors:
        sizes.extend(examples(batch) for batch in probe.batches)
        return {n: torch.ones(host.layout.shapes[n]) for n in probe.prunable}

    ask = replace(SCORES["taylor"].asks[0], collect=collect)
    own = {**SCORES, "taylor": replace(SCORES["taylor"], asks=(ask,))}
    monkeypatch.setattr("fedprune.client.dp_sgd.scores_of", lambda _: own)
    client = seat_of(host, noised(MLP), rows(5))
    noised_statistics(question, client, client_probe(question, client, host.layout.prunable, {}))
    assert sizes == [1] * 5


@pytest.mark.parametrize("score", ["taylor", "fisher", "wanda"])
def test_one_example_more_moves_statistics_by_the_norm_at_most(score):
    host = house_of(MLP)
    config = noised(MLP, dp_score_clip=0.3)
    question = asked(host, score)

    def flat(part: Part) -> Tensor:
        client = seat_of(host, config, part)
        probe = client_probe(question, client, host.layout.prunable, {})
        return gathered(noised_statistics(question, client, probe), {})

    part = rows(8)
    part["images"][0] *= 1e4
    whole = flat(part)
    for i in (0, 1, 7):
        others = [j for j in range(8) if j != i]
        apart = float((whole - flat({n: t[others] for n, t in part.items()})).norm())
        assert 0.0 < apart <= 0.3 * (1 + 1e-5)


def test_scores_get_noise_where_alive_and_nowhere_else():
    host = house_of(MLP)
    question = asked(host, "taylor")
    quiet = noised(MLP, dp_score_clip=0.25)
    loud = noised(MLP, dp_score_clip=0.25, dp_score_noise=8.0)
    given = []
    for config in (quiet, loud, loud):
        given.append(answer(question, seat_of(host, config, rows(6))).values.double())
    noise = given[1] - given[0]
    assert noise.numel() == count_kept(question.masks)
    assert float(noise.std()) == pytest.approx(2.0, rel=0.03)
    assert torch.equal(given[2], given[1])


def test_two_questions_never_share_their_noise():
    host, config = house_of(MLP), tiny(model="mlp")
    one = asked(host, "taylor")
    name = host.layout.prunable[0]
    others = [
        replace(one, round=4),
        replace(one, kind="tune"),
        replace(one, score="fisher"),
        replace(one, dense=True),
        replace(one, names=(name,)),
        replace(one, sparsity=0.5),
        replace(one, weights={**one.weights, name: one.weights[name] + 1e-6}),
        replace(one, masks={**one.masks, name: ~one.masks[name]}),
        replace(one, given={name: one.weights[name]}),
    ]
    words = {
        source_for(q, config, p, what).words(4).tobytes()
        for q in (one, *others)
        for p in (0, 1)
        for what in ("noise", "examples")
    }
    assert len(words) == 4 * (1 + len(others))


def tuned(config: RunConfig, model: nn.Module, masks: Tensors, part: Part) -> Tensors:
    """The model's state after the configuration's private steps."""
    noise, drawn = (seeded_source(5, what) for what in ("noise", "examples"))
    steps = poisson_steps(part, config.local_steps, config.dp_rate or 0.0, drawn)
    backward = noisy_steps(model, TASK, masks, config, config.batch_size, noise)
    tune(model, masks, steps, TASK, config.lr, config, backward=backward)
    return copied(state_of(model))


def mlp() -> nn.Module:
    return dense_model(MLP)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_clip_and_noise_it_is_ordinary_training(optimizer):
    part = rows(12)
    config = tiny(model="mlp", optimizer=optimizer, batch_size=12, local_steps=3, clip=0.0)
    one, other = mlp(), mlp()
    masks = some_masks(state_of(one), layout_for(config, one).prunable[:1])
    for model in (one, other):
        load_into(model, masked(state_of(model), masks))
    private = noised(config, dp_rate=1.0, dp_clip=1e6)
    found = tuned(private, one, masks, part)
    tune(other, masks, iter([[part]] * 3), TASK, config.lr, config)
    for name, right in state_of(other).items():
        # Adam divides by the root of squares: near 0 it makes much of the last bit.
        assert torch.allclose(found[name], right, atol=1e-4 if optimizer != "sgd" else 1e-6), name


def test_a_step_is_the_clipped_sum_over_the_batch_size_of_the_configuration():
    part, model = rows(9), mlp()
    start = copied(state_of(model))
    keys = {"optimizer": "sgd", "momentum": 0.0, "batch_size": 4, "local_steps": 1, "clip": 0.0}
    config = noised(tiny(model="mlp", lr=0.5, **keys), dp_rate=1.0, dp_clip=0.2)
    names = [n for n, _ in model.named_parameters()]
    total = torch.zeros(sum(t.numel() for t in start.values()), dtype=torch.float64)
    for row in batches(part, 1):
        found = torch.autograd.grad(TASK.loss(model, row).total, list(model.parameters()))
        total += clipped(gathered(dict(zip(names, found, strict=True)), {}), 0.2)
    found_ = tuned(config, model, {}, part)
    moved = gathered({n: found_[n] - start[n] for n in start}, {})
    assert torch.allclose(moved.double(), -0.5 * total / 4, atol=1e-6)


def test_an_example_of_many_labels_counts_by_its_mean(llama):
    host, question = llama
    load_into(host.model, question.weights)
    config = noised(host.config, dp_rate=1.0, dp_clip=1e6, batch_size=2, clip=0.0, local_steps=1)
    part = {n: t[:2] for n, t in host.shards[0].train.items()}
    noise = seeded_source(1, "noise")
    done = noisy_steps(host.model, host.task, question.masks, config, 2, noise)([part])
    loss = host.task.loss(host.model, part)
    assert done.labels == loss.count
    assert done.loss == pytest.approx(loss.total.item(), rel=1e-5)
    found = copied({n: p.grad for n, p in host.model.named_parameters() if p.grad is not None})
    host.model.zero_grad()
    # All windows are of one length, so that the mean over labels is the mean over examples.
    (loss.total / loss.count).backward()
    for name, p in host.model.named_parameters():
        assert p.grad is not None
        right = masked({name: p.grad}, question.masks)[name]
        assert torch.allclose(found[name], right, rtol=1e-3, atol=1e-5), name
    host.model.zero_grad()


def linear_loss(model: nn.Module, batch: Part) -> Loss:
    """Its gradient in the one weight is the sum of x."""
    out = model(batch["x"])
    return Loss(out.sum(), len(out), 0)


def test_examples_are_drawn_each_by_itself():
    n, rate, steps = 30, 0.2, 4000
    part = {"x": torch.arange(n)}
    drawn = list(poisson_steps(part, steps, rate, seeded_source(2, "examples")))
    sizes = np.array([sum(examples(b) for b in step) for step in drawn])
    assert sizes.mean() == pytest.approx(n * rate, rel=0.02)
    assert sizes.var() == pytest.approx(n * rate * (1 - rate), rel=0.1)
    assert (sizes == 0).sum() == pytest.approx(steps * (1 - rate) ** n, abs=15)
    each = torch.cat([batch["x"] for step in drawn for batch in step]).bincount(minlength=n)
    assert (each / steps - rate).abs().max() < 5 * math.sqrt(rate * (1 - rate) / steps)


def test_noise_on_a_step_has_the_deviation_it_says():
    """Of one weight: z times the clip over the batch size, whatever was drawn."""
    task: Task = replace(TASK, loss=linear_loss, labels=examples)
    z, clip, part = 3.0, 0.5, {"x": torch.full((4, 1), 0.4)}

    def gradients(step: list[Part], count: int, noise: float) -> np.ndarray:
        model = nn.Linear(1, 1, bias=False)
        config = noised(tiny(model="mlp", batch_size=10), dp_clip=clip, dp_noise=noise)
        backward = noisy_steps(model, task, {}, config, 10, seeded_source(2, "noise"))
        out = []
        for _ in range(count):
            backward(step)
            out.append(float(model.weight.grad))
        return np.array(out)

    quiet, loud = gradients([], 5000, z), gradients([part], 50, z)
    assert quiet.std() == pytest.approx(z * clip / 10, rel=0.03)
    assert abs(quiet.mean()) < 5 * z * clip / 10 / math.sqrt(5000)
    # The same noise comes on top of the examples' sum.
    assert np.allclose(loud - quiet[:50], 4 * 0.4 / 10, atol=1e-6)
    assert np.allclose(gradients([part], 2, 0.0), 4 * 0.4 / 10, atol=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_weights_stay_zero_under_noise(optimizer):
    keys = {"weight_decay": 0.1, "proximal": 0.3, "l1": 0.01, "l2": 0.01, "shrinkage": "gradient"}
    config = tiny(model="mlp", optimizer=optimizer, local_steps=6, clip=0.5, **keys)
    model = mlp()
    masks = some_masks(state_of(model), layout_for(config, model).prunable)
    load_into(model, masked(state_of(model), masks))
    start = copied(state_of(model))
    found = tuned(noised(config, dp_noise=5.0, dp_clip=1.0), model, masks, rows(20))
    for name, mask in masks.items():
        assert (found[name][~mask] == 0.0).all()
        assert (found[name][mask] != start[name][mask]).float().mean() > 0.99


def test_a_step_without_examples_is_noise():
    config = noised(tiny(model="mlp", local_steps=3), dp_rate=1e-9, dp_noise=1.0)
    steps = list(poisson_steps(rows(5), 3, 1e-9, seeded_source(1, "examples")))
    assert steps == [[], [], []]
    model = mlp()
    start = copied(state_of(model))
    found = tuned(config, model, {}, rows(5))
    assert all((found[n] != start[n]).any() for n in start)


def test_what_a_client_sends_repeats_and_depends_on_its_partition():
    host = house_of(MLP)
    weights = copied(state_of(host.model))
    masks = full_masks(weights, host.layout.prunable)
    question = Question("tune", 2, weights, masks, lr=0.1)
    config = noised(MLP, dp_noise=1.0)
    client = seat_of(host, config, rows(10))
    first, again = (answer(question, client).values for _ in range(2))
    other = answer(question, replace(client, partition=1)).values
    secret = answer(question, replace(client, config=noised(config, noise_source="secret"))).values
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, secret)


def test_a_model_with_batchnorm_is_refused():
    config = noised(tiny())
    with pytest.raises(ValueError, match=r"^dp='example': BatchNorm \(features\.1\) mixes the"):
        layout_for(config, dense_model(config))
