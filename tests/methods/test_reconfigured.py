"""Masks that the server moves, and layers that clients share out, against their rules by hand."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune.config import configure
from fedprune.methods import prunefl
from fedprune.methods.fedspallm import blocks_given
from fedprune.methods.prunefl import worth
from fedprune.protocol.messages import Question
from fedprune.randomness import generator
from fedprune.scores.gradients import watched_mean_square
from fedprune.structure.layout import layout_of
from tests.perceptron import (
    LAYERS,
    SMALL,
    count,
    data,
    flat,
    gradients,
    kept_by,
    mean_of_holders,
    outputs,
    summed_gradients,
)
from tests.runs import house_of, overheard, same, tiny

Named = dict[str, Tensor]


def greedy(earned, costs, kept, constant, most):
    """Algorithm 1 as a loop."""
    out, gain, time = kept.copy(), earned[kept].sum(), constant + costs[kept].sum()
    for j in sorted(np.flatnonzero(~kept), key=lambda j: (-earned[j] / costs[j], j)):
        if earned[j] / costs[j] <= gain / time or out.sum() >= most:
            break
        out[j], gain, time = True, gain + earned[j], time + costs[j]
    return out


def test_what_pays_for_its_time_is_kept():
    gen = np.random.default_rng(1)
    for constant, most in ((0.5, 400), (5.0, 400), (50.0, 400), (50.0, 90), (50.0, 9)):
        earned, costs = gen.exponential(size=400) ** 3, gen.choice([0.1, 0.4], 400)
        kept = gen.random(400) < 0.1
        found = worth(earned, costs, kept, constant, most)
        assert (found == greedy(earned, costs, kept, constant, most)).all()
    assert kept.sum() < worth(earned, costs, kept, 5.0, 400).sum() < 400


def two_steps(question: Question, x: Tensor, y: Tensor) -> tuple[Named, Named]:
    """Mean g, squared, times the labels of two steps of descent under a mask; weights then."""
    weights, sums = {n: w.double() for n, w in question.weights.items()}, dict.fromkeys(LAYERS, 0.0)
    for _ in range(2):
        slopes = gradients(weights, x, y)
        sums = {n: sums[n] + slopes[n] for n in LAYERS}
        moved = {n: w - question.lr * slopes[n] for n, w in weights.items()}
        weights = {n: w * question.masks.get(n, 1) for n, w in moved.items()}
    return {n: 2 * len(y) * (s / 2).square() for n, s in sums.items()}, weights


def test_prunefl_is_its_algorithm():
    given = {**SMALL, "method": "prunefl", "rounds": 5, "end": 5, "frequency": 2, "sparsity": 0.3}
    options = {"constant": 1e-3, "comm": 1e-6, "comp": 1e-6, "dec": 0.4, "initial": 2}
    options["half_life"] = 4
    # So fast that gradients of one round are not those of the next.
    config = configure({**given, "lr": 1.0, "local_epochs": 2, "method_options": options})
    _, asked, states = overheard(config)
    tuned = [(q, who) for q, who, _ in asked if q.kind == "tune"]
    assert [who for _, who in tuned[:3]] == [[0], [0], [0, 1, 2]], "first on one client"
    assert [bool(q.score) for q, _ in tuned] == [True] * 6 + [False], "none after the last time"
    assert [s.prunings for s in states] == [1, 1, 2, 2, 3]
    sizes = []
    for these, then in ((tuned[1:2], 2), (tuned[2:4], 4), (tuned[4:6], 6)):
        earned = dict.fromkeys(LAYERS, 0.0)
        for question, who in these:
            for client in who:
                found, _ = two_steps(question, *data(config, client))
                earned = {n: earned[n] + found[n] for n in LAYERS}
        later = tuned[then][0]
        last = these[-1][0] if then == 2 else states[later.round - 2]
        kept = {}
        for n in LAYERS:
            mask, size = last.masks[n].flatten(), last.weights[n].abs().flatten()
            if then == 2:  # of the one client's model after its steps, which nobody else sees
                size = two_steps(last, *data(config, 0))[1][n].abs().flatten()
            order = torch.where(mask, size, math.inf).argsort(stable=True)
            kept[n] = mask.clone()
            kept[n][order[: int(0.4 * 0.5 ** (later.round / 4) * int(mask.sum()))]] = False
        costs = np.full(len(flat(earned)), 2e-6)  # one row of a perceptron's layer an example
        most = count(flat(later.masks), 0.3)
        wanted = greedy(flat(earned).numpy(), costs, flat(kept).numpy(), 1e-3, most)
        assert int((flat(later.masks).numpy() != wanted).sum()) <= 4, "but for rounding"
        sizes.append(int(wanted.sum()))
    assert len(set(sizes)) > 1, "the model's size moves"


def test_squares_of_prunefl_are_of_the_mean_step_times_the_labels_trained_on():
    model = torch.nn.Linear(3, 2)
    with watched_mean_square(model, layout_of(model), ["weight"]) as watcher:
        for count, slope in ((4, 1.0), (4, 3.0), (4, -1.0)):
            model.weight.grad = torch.full_like(model.weight, slope)
            watcher.after_backward(count)
    assert (watcher.sums["weight"] == 12 * (3.0 / 3) ** 2).all()


def test_the_first_client_of_prunefl_goes_on_until_five_in_a_row_change_a_tenth_at_most(
    monkeypatch,
):
    parts = iter([0.95, 0.95, 0.85, *[0.95] * 7])

    def thinned(model, _r, _found, rows=lambda m: m.sum(1, keepdim=True)):
        part = next(parts)
        return {n: m & (m.cumsum(1) <= part * rows(m)) for n, m in model.masks.items()}

    monkeypatch.setattr(prunefl, "reconfigured", thinned)
    config = configure({**SMALL, "method": "prunefl", "end": 2, "sparsity": 0.6})
    _, asked, _ = overheard(config)
    assert [who for q, who, _ in asked if q.kind == "tune"] == [[0]] * 8 + [[0, 1, 2]] * 2


@pytest.mark.slow
def test_a_weight_of_prunefl_costs_the_rows_that_its_layer_sees():
    options = {"constant": 3.0, "comm": 1e-4, "comp": 1e-3, "initial": 1}
    keys = {"model": "cnn", "clients": 3, "cohort": 3, "rounds": 2, "warmup": 0, "end": 2}
    config = tiny(**keys, method="prunefl", sparsity=0.6, method_options=options)
    result, asked, _ = overheard(config)
    host, seen = house_of(config), dict[str, int]()
    modules = {n: host.model.get_submodule(n.rpartition(".")[0]) for n in host.layout.prunable}
    for n, module in modules.items():
        module.register_forward_hook(lambda _m, _x, y, n=n: seen.update({n: y[0, 0].numel()}))
    host.task.loss(host.model, host.shards[0].train)
    masks = [q for q, _, _ in asked if q.kind == "tune"][-1].masks
    seconds = 3.0 + sum(int(m.sum()) * (1e-4 + 1e-3 * seen[n]) for n, m in masks.items())
    assert result.rows[-1]["method"]["round_seconds"] == pytest.approx(seconds)
    assert len(set(seen.values())) > 1


@pytest.mark.slow
def test_fedtiny_takes_the_candidate_of_the_lowest_loss_and_moves_block_by_block():
    given = {**SMALL, "method": "fedtiny", "rounds": 4, "end": 4, "sparsity": 0.6, "regrow": 0.4}
    config = configure({**given, "method_options": {"candidates": 3, "spread": 0.4}})
    _, asked, states = overheard(config)
    tried = [(q, a) for q, _, a in asked if q.kind == "evaluate" and q.round == 1][:5]
    tried = [(q, a) for q, a in tried if q.part == "validation" and len(a.answered) == 3][:3]
    losses = [a.totals["loss"] / a.totals["count"] for _, a in tried]
    first = next(q for q, _, _ in asked if q.kind == "tune")
    assert torch.equal(flat(first.masks), flat(tried[losses.index(min(losses))][0].masks))
    begin = house_of(config).model.state_dict()
    for question, _ in tried:
        assert int(flat(question.masks).sum()) == count(flat(question.masks), 0.6)
        for n, m in question.masks.items():
            kept_by(m, begin[n].abs(), int(m.sum()))
    even = tried[0][0].masks
    assert all(abs(int(m.sum()) - 0.4 * m.numel()) <= 1 for m in even.values())
    for i, (question, _) in enumerate(tried):  # times 1 plus what is within the spread, scaled
        parts = [float(m.double().mean()) for m in question.masks.values()]
        gen = generator(config.seed, "coarse masks", i)
        by = 1 + (2 * torch.rand(2, generator=gen) - 1) * (0.4 if i else 0.0)
        assert parts[0] / parts[1] == pytest.approx(float(by[0] / by[1]), rel=2e-3)
    moved = []
    for before, after, step in zip(states, states[1:], (1, 2, 3), strict=False):
        slopes = summed_gradients(config, before.weights)
        name = LAYERS[-1 - (step - 1) % 2]
        (sent,) = [q for q, _, _ in asked if q.kind == "score" and q.round == step + 1]
        assert (sent.names, sent.dense) == ((name,), True), "all gradients of the block, no others"
        (other,) = set(LAYERS) - {name}
        assert torch.equal(before.masks[other], after.masks[other])
        old, new = before.masks[name], after.masks[name]
        many = math.floor(0.2 * (1 + math.cos(math.pi * step / 4)) * int(old.sum()) + 0.5)
        kept_by((old & new)[old], before.weights[name].abs()[old], int(old.sum()) - many)
        kept_by((new & ~old)[~old], slopes[name].abs()[~old], many)
        moved.append(name)
    assert moved == [LAYERS[1], LAYERS[0], LAYERS[1]]


def test_fedtiny_selects_by_statistics_of_the_clients():
    config = tiny(method="fedtiny", rounds=2, warmup=0, end=2, method_options={"candidates": 2})
    _, asked, _ = overheard(config)
    fresh = [(q, a) for q, _, a in asked if q.kind == "tune" and q.lr == 0.0]
    assert len(fresh) == 2
    measured = [q for q, _, _ in asked if q.kind == "evaluate" and len(q.masks) and q.round == 1]
    layout = house_of(config).layout
    for question, _ in fresh:
        seen = next(q for q in measured if same(q.masks, question.masks))
        for n, w in question.weights.items():
            assert torch.equal(seen.weights[n], w) == (n not in layout.statistics), n


def by_largest_inputs(weights: Named, x: Tensor, y: Tensor, part: float) -> Named:
    """Gradients, those of the two matrices by the largest inputs of the batch alone."""
    slopes = gradients(weights, x, y)
    for i, n in enumerate(LAYERS):  # a weight's slope is its outputs' slopes by inputs
        held, rest = outputs(weights, x, i), {k: w.double() for k, w in weights.items()}
        before = held @ rest[n].T + rest[n.replace("weight", "bias")]
        logits = before.requires_grad_()
        for later in ("features.3", "head")[i:]:
            logits = logits.relu() @ rest[f"{later}.weight"].T + rest[f"{later}.bias"]
        assert torch.allclose(logits, outputs(weights, x))
        (delta,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), before)
        many = max(1, round((1 - part) * held.numel()))
        least = held.abs().flatten().topk(many).values[-1]
        slopes[n] = delta.T @ torch.where(held.abs() >= least, held, 0.0)
    return slopes


@pytest.mark.slow
def test_fedmef_presses_what_is_about_to_go_and_prunes_inputs():
    given = {**SMALL, "method": "fedmef", "rounds": 3, "end": 3, "sparsity": 0.6, "regrow": 0.4}
    options = {"extrusion": 0.3, "activations": 0.4}
    config = configure({**given, "lr_schedule": "constant", "method_options": options})
    _, asked, states = overheard(config)
    first = next(q for q, _, _ in asked if q.kind == "tune")
    part = 0.2 * (1 + math.cos(math.pi * 1 / 3))
    press = {}
    for n in LAYERS:
        mask, w = first.masks[n], first.weights[n].double()
        few = math.floor(part * int(mask.sum()) + 0.5)
        low = torch.where(mask, w.abs(), math.inf).flatten().argsort()[:few]
        press[n] = torch.zeros(w.numel()).double().index_fill(0, low, 1).reshape(w.shape) * w
    parts = []
    for x, y in (data(config, client) for client in range(3)):
        slopes = by_largest_inputs(first.weights, x, y, 0.4)
        pressed = {n: slopes[n] + 2 * 0.3 * press.get(n, 0) for n in slopes}
        parts.append(
            (len(y), {n: w - 0.1 * pressed[n] for n, w in first.weights.items()}, first.masks)
        )
    for n, mean in mean_of_holders(parts, first.weights).items():
        assert torch.allclose(states[0].weights[n].double(), mean, atol=1e-6), n
    last = [q for q, _, _ in asked if q.kind == "tune"][-1]
    assert (first.extrude, last.extrude) == (0.3, 0.0), "nothing goes after the last round"


def test_fedspallm_is_its_three_equations():
    given = {**SMALL, "method": "fedspallm", "rounds": 2, "calibration": "dense", "sparsity": 0.47}
    options = {"layers": 0.5}
    config = configure({**given, "lr_schedule": "constant", "method_options": options})
    _, asked, states = overheard(config)
    own = [(q, who[0], a) for q, who, a in asked if q.kind == "own"]
    assert {n for q, _, _ in own for n in q.names} == set(LAYERS), "every layer is somebody's"
    assert all(len(q.names) == 1 for q, _, _ in own) or len({q.names for q, _, _ in own}) > 1
    start, masks = own[0][0].weights, {}
    for question, client, answer in own:
        inputs = {n: outputs(start, data(config, client)[0], i) for i, n in enumerate(LAYERS)}
        masks[client] = {}
        sizes = [start[n].numel() for n in sorted(question.names)]
        parts = dict(zip(sorted(question.names), answer.votes.split(sizes), strict=True))
        for n in question.names:
            score = start[n].double().abs() * inputs[n].square().sum(0).sqrt()
            masks[client][n] = parts[n].reshape(score.shape) > 0
            kept_by(masks[client][n], score, count(score, 0.47))
    parts = []
    for client in range(3):
        begun = {n: w.double() * masks[client].get(n, 1) for n, w in start.items()}
        slopes = gradients(begun, *data(config, client))
        parts.append((1, {n: w - 0.1 * slopes[n] for n, w in begun.items()}, masks[client]))
    means, after = mean_of_holders(parts, start), states[0]
    for n, mean in means.items():
        wanted = mean * after.masks.get(n, 1)
        assert torch.allclose(after.weights[n].double(), wanted, atol=1e-5), n
    ties = []
    for n in LAYERS:
        votes, left = sum(m[n].double() for m in masks.values() if n in m), after.masks[n]
        kept_by(left, votes, count(left, 0.47))
        tied = votes == votes[left].min()
        ties.append(bool((tied & ~left).any()))
        kept_by(left[tied], means[n].abs()[tied], int((tied & left).sum()))
    assert any(ties), "they go by magnitude"
    later = [q.masks for q, _, _ in asked if q.kind == "tune" and q.round == 2]
    assert all(same(masks, after.masks) for masks in later), "then one mask for all"


def test_every_block_of_fedspallm_is_somebodys():
    blocks = tuple((f"block {i}",) for i in range(12))
    for number in range(20):
        r: Any = SimpleNamespace(options=SimpleNamespace(layers=(0.25,)), number=number)
        r.config, r.plan = SimpleNamespace(seed=0), SimpleNamespace(tiers=())
        given = blocks_given([3, 4], blocks, r)
        assert {b for those in given.values() for b in those} == set(blocks)
        assert all(len(those) >= 3 for those in given.values())
