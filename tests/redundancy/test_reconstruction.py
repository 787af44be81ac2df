import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune import RunConfig, federate
from fedprune.client.host import Host, build_host
from fedprune.engines.inline import inline_port
from fedprune.methods.reconstruct import in_order, reconstructed
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.redundancy.reconstruction import (
    RECONSTRUCTIONS,
    Fit,
    before_of,
    outputs_of,
    refit,
    sizes_of,
)
from fedprune.scores.inputs import inputs_of
from fedprune.server.ask import conversed
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Step
from fedprune.server.state import Book, Model
from fedprune.structure.layers import input_rows, layers_of, output_rows, watching
from fedprune.structure.layout import as_rows
from fedprune.tasks.task import Part
from fedprune.tensors.models import load_into
from fedprune.tensors.named import copied, masked
from tests.runs import Spy, house_of, played, tiny


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x: Tensor, y: Tensor) -> Fit:
    return Fit(x.t() @ x, y.t() @ x, float(y.square().sum()))


def test_the_fit_is_numpys_least_squares_row_by_row():
    x, y = random(0, 200, 7), random(1, 200, 5)
    alive = random(2, 5, 7) > -0.3
    alive[3] = alive[1]  # solved for together
    alive[4] = False
    w = random(3, 5, 7).masked_fill(~alive, 0.0)
    fresh = refit(w, alive, moments(x, y), ridge=0.0)
    for i in range(5):
        kept = alive[i].numpy()
        best = np.zeros(7)
        best[kept] = np.linalg.lstsq(x.numpy()[:, kept], y.numpy()[:, i], rcond=None)[0]
        assert np.allclose(fresh[i].numpy(), best, atol=1e-10)
    residual = float((y - x @ fresh.t()).square().sum())
    assert moments(x, y).error(fresh) == pytest.approx(residual)


def test_the_ridge_is_towards_what_was_there():
    x, y, w = random(0, 50, 4), random(1, 50, 3), random(2, 3, 4)
    alive = torch.ones(3, 4, dtype=torch.bool)
    fit = moments(x, y)
    fresh = refit(w, alive, fit, ridge=0.5)
    damp = 0.5 * float(fit.inputs.diagonal().mean())
    slope = (fresh @ fit.inputs - fit.outputs) + damp * (fresh - w)
    assert slope.abs().max() < 1e-9
    far = refit(w, alive, fit, ridge=1e9)
    assert torch.allclose(far, w, atol=1e-6)
    untouched = refit(w, alive, moments(x, x @ w.t()))
    assert torch.allclose(untouched, w, atol=1e-10)


def test_inputs_that_are_always_zero_leave_their_weights():
    x, y, w = random(0, 50, 4), random(1, 50, 3), random(2, 3, 4)
    x[:, 2] = 0.0
    alive = torch.ones(3, 4, dtype=torch.bool)
    fresh = refit(w, alive, moments(x, y), ridge=0.0)
    assert torch.equal(fresh[:, 2], w[:, 2])
    assert torch.isfinite(fresh).all()
    nothing = refit(w, alive, moments(torch.zeros(50, 4).double(), y))
    assert torch.equal(nothing, w)


def pair(host: Host, question: Question) -> tuple[Any, Any, dict[str, Tensor]]:
    """The pruned model and the one before, in float32, and the weights before."""
    gen = torch.Generator().manual_seed(0)
    dense = copied(question.weights)
    for n, mask in question.masks.items():
        small = question.weights[n][mask].abs().quantile(0.3)
        dense[n] += ~mask * small * torch.randn(mask.shape, generator=gen)
    before, pruned = copy.deepcopy(host.model), copy.deepcopy(host.model)
    load_into(before, dense)
    load_into(pruned, masked(dense, question.masks))
    return before.eval(), pruned.eval(), dense


def rows_through(model: Any, names: list[str], host: Host, part: Part) -> dict[str, Any]:
    found: dict[str, Any] = {n: [] for n in names}

    def seen(name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        made = output_rows(layer, y).flatten(0, 1)
        bias = 0 if layer.bias is None else layer.bias
        found[name].append((input_rows(layer, x).flatten(0, 2), made - bias))

    with torch.no_grad(), watching(layers_of(model, names), seen):
        host.task.loss(model, part)
    return {n: tuple(torch.cat(t).double() for t in zip(*v, strict=True)) for n, v in found.items()}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("model", ["cnn", "llama"])
@pytest.mark.parametrize("kind", RECONSTRUCTIONS)
def test_clients_sums_are_those_of_pooled_data(kind, model, request):
    host, question = request.getfixturevalue(model)
    before, pruned, dense = pair(host, question)
    names = list(host.layout.prunable)
    given = {before_of(n): dense[n] for n in names} if kind == "outputs" else {}
    asked = Question(kind, 4, masked(dense, question.masks), question.masks, given=given)
    aggregate = inline_port(host).ask(asked, sorted(host.shards))
    assert not aggregate.failures
    sums = form_of(asked, host.config, host.layout).named(aggregate.total)
    parts = [s.train for s in host.shards.values()]
    pooled = {n: torch.cat([p[n] for p in parts]) for n in parts[0]}
    x = rows_through(pruned, names, host, pooled)
    y = rows_through(before, names, host, pooled)
    for n in names:
        w = as_rows(host.layout, n, dense[n].double())
        fit = RECONSTRUCTIONS[kind].fit(sums, n, w)
        rows = x[n][0]
        wanted = rows @ w.t() if kind == "inputs" else y[n][1]
        right = moments(rows, wanted)
        for found, true in ((fit.inputs, right.inputs), (fit.outputs, right.outputs)):
            assert (found - true).abs().max() <= 1e-5 * true.abs().max(), n
        assert fit.size == pytest.approx(right.size, rel=1e-4)
    if kind == "outputs":
        assert {outputs_of(names[0]), sizes_of(names[0]), inputs_of(names[0])} <= sums.keys()


def fit(
    before: Model, pruned: Model, host: Host, config: RunConfig, cohort: list[int]
) -> tuple[Step, Book]:
    """What comes of a pruned model's reconstruction, and what was asked for it."""
    plan = Plan(config, host.layout, (1, 1))
    talk = reconstructed(before, pruned, None, Round(4, plan, cohort))
    return conversed(talk, Book(), plan, inline_port(host))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("calibration", ["dense", "sequential"])
@pytest.mark.parametrize("kind", RECONSTRUCTIONS)
def test_a_pruned_model_comes_closer_to_what_it_was(kind, calibration, llama):
    host, question = llama
    before, pruned, dense = pair(host, question)
    full = {n: torch.ones_like(m) for n, m in question.masks.items()}
    first = Model(dense, full)
    keys = {"task": "shakespeare", "clients": 3, "cohort": 3, "scope": "layer"}
    config = tiny(**keys, reconstruct=kind, calibration=calibration)
    step, _ = fit(first, first.under(question.masks), host, config, [0, 1, 2])
    model, left = step.model, step.notes.refit
    assert left is not None
    assert 0.0 < left < 1.0
    part = host.shards[0].train
    fitted = copy.deepcopy(pruned)
    load_into(fitted, model.weights)
    with torch.no_grad():
        logits = [host.task.loss(m, part).logits for m in (before, pruned, fitted)]
    assert all(z is not None for z in logits)
    apart = [float((z - logits[0]).square().mean()) for z in logits[1:]]  # type: ignore[operator]
    most = {"inputs": {"dense": 0.9, "sequential": 0.3}, "outputs": {}}[kind].get(calibration, 0.1)
    assert apart[1] < most * apart[0]
    for n, m in question.masks.items():
        assert not model.weights[n][~m].any()
        assert model.weights[n].dtype == torch.float32
    spared = [n for n in dense if n not in question.masks]
    assert all(torch.equal(model.weights[n], dense[n]) for n in spared)


def test_layers_are_fitted_in_order_those_with_one_input_together(llama):
    layer = "model.layers.0."
    assert in_order(llama[0].layout)[:4] == [
        tuple(f"{layer}self_attn.{n}_proj.weight" for n in "qkv"),
        (f"{layer}self_attn.o_proj.weight",),
        tuple(f"{layer}mlp.{n}_proj.weight" for n in ("gate", "up")),
        (f"{layer}mlp.down_proj.weight",),
    ]


def test_without_enough_answers_it_comes_to_nothing(llama):
    host, question = llama
    config = tiny(task="shakespeare", clients=3, cohort=3, min_clients=3, reconstruct="inputs")
    first = Model(question.weights, {n: m | True for n, m in question.masks.items()})
    step, book = fit(first, first.under(question.masks), host, config, [0, 1])
    assert step.undone, "a pruning with all that belongs to it is made up for"
    assert step.notes.refit is None
    assert book.traffic.up > 0


def test_a_round_without_a_pruning_asks_nothing(llama):
    host, question = llama
    config = tiny(task="shakespeare", clients=3, cohort=3, reconstruct="inputs")
    model = Model(question.weights, question.masks)
    step, book = fit(model, model, host, config, [0])
    assert step.model is model
    assert book == Book()


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECONSTRUCTIONS)
def test_a_run_reconstructs_after_each_pruning(kind):
    config = tiny(reconstruct=kind)
    eye = Spy(inline_port(house_of(config)))
    result = federate(config, eye.port)
    fits = [q for q, _, _ in eye.asked if q.kind == kind]
    layers = 1 if kind == "inputs" else 3
    assert [q.round for q in fits] == [3] * layers + [4] * layers
    left = [row["refit"] for row in result.rows]
    assert [part is None for part in left] == [True, True, False, False, True]
    assert all(0 < part < 1 for part in left if part is not None)
    plain = played(tiny())
    assert result.rows[1]["weights_digest"] == plain.rows[1]["weights_digest"]
    assert result.rows[2]["mask_digest"] == plain.rows[2]["mask_digest"]
    assert result.rows[2]["weights_digest"] != plain.rows[2]["weights_digest"]
    assert result.rows[2]["bytes_up"] > plain.rows[2]["bytes_up"]


def test_a_layer_without_inputs_is_refused_before_anything_starts():
    config = tiny(reconstruct="inputs", include=("features.1.weight",), score="magnitude")
    with pytest.raises(ValueError, match=r"features.1.weight has no inputs to measure"):
        build_host(config, {})
