"""Compositions and masks from the start, against their rules in plain torch."""

import pytest
import torch
from torch import Tensor

from fedprune.client.host import Host
from fedprune.config import configure
from fedprune.methods.catalog import check_method
from fedprune.options.refusal import ConfigError
from tests.gallery import UNPRUNED
from tests.perceptron import LAYERS, SMALL, count, flat, gradients, kept_by
from tests.runs import house_of, overheard, same, tiny


def data(host: Host, client: int) -> tuple[Tensor, Tensor]:
    part = host.shards[client].train
    return part["images"].flatten(1).double(), part["labels"]


@pytest.mark.parametrize("calibration", ["local", "sequential"])
def test_fedprllm_scales_by_the_share_of_votes_to_keep(calibration):
    """Which weights go is held by the recipe's test; block by block the second sees the first."""
    given = {**SMALL, "method": "fedprllm", "calibration": calibration, "lr": 1e-30, "rounds": 1}
    _, asked, (state, *_) = overheard(configure({**given, "method_options": {"scaled": True}}))
    scored = [(q, a) for q, _, a in asked if q.kind == "score"]
    assert len(scored) == (1 if calibration == "local" else 2)
    start = scored[0][0].weights
    votes = torch.cat([a.votes for _, a in scored])
    mask, old, new = flat(state.masks), flat(start), flat(state.weights)
    assert torch.allclose(new[mask], (old * votes / 3)[mask], rtol=1e-5)
    for name in LAYERS:
        assert int(state.masks[name].sum()) == count(state.masks[name], 0.5)


@pytest.mark.parametrize("method", ["rigl", "fedmef", "dispfl", "feddst", "flash"])
def test_training_begins_at_the_papers_densities_by_chance_or_with_the_largest(method):
    """Of layers of unequal sides: by Erdős-Rényi-Kernel, or all alike (FLASH)."""
    ends = {"rounds": 1, "end": 1} if method == "dispfl" else {"rounds": 3, "end": 3}
    keys = {"model": "cnn", "clients": 3, "cohort": 3, "warmup": 0, "local_steps": 2}
    config = tiny(**keys, **ends, method=method, sparsity=0.8)
    _, asked, states = overheard(config)
    masks = next(q for q, _, _ in asked if q.kind == "tune").masks
    sides = {n: 1.0 if method == "flash" else sum(m.shape) / m.numel() for n, m in masks.items()}
    density = {n: float(m.double().mean()) for n, m in masks.items()}
    (full, *_), *rest = sorted(density.items(), key=lambda x: -x[1])
    assert full == "features.0.weight" or method == "flash"
    (a, dense), (b, sparse) = rest
    assert dense / sparse == pytest.approx(sides[a] / sides[b], rel=2e-2)
    assert sum(int(m.sum()) for m in masks.values()) == count(
        torch.cat([m.flatten() for m in masks.values()]), 0.8
    )
    assert "head.weight" not in masks, "the output layer is not pruned"
    sizes = {n: house_of(config).model.state_dict()[n].abs() for n in masks}
    largest = all(m.flatten()[sizes[n].flatten().argsort()[-9:]].all() for n, m in masks.items())
    assert largest == (method == "feddst")
    if method == "rigl":
        assert any((states[1].masks[n] & ~m).any() for n, m in masks.items())


def test_fedpai_is_its_two_steps():
    given = {**SMALL, "method": "fedpai", "score": "snip", "sparsity": 0.7, "rounds": 4}
    config = configure({**given, "lr_schedule": "constant"})
    host = house_of(config)
    _, asked, states = overheard(config)
    start = next(q for q, _, _ in asked if q.kind == "own").weights
    masks = states[0].memories["fedpai"].masks
    weights = {n: w.double() for n, w in start.items()}
    for client in range(3):
        slopes = gradients(start, *data(host, client))
        kept_by(flat(masks[client]), (flat(start) * flat(slopes)).abs(), count(flat(masks[0]), 0.7))
    for i in range(4):
        sums, held = {}, {}
        for client in range(3):
            x, y = data(host, client)
            begun = {n: w * masks[client].get(n, 1) for n, w in weights.items()}
            slopes = gradients(begun, x, y)
            for n, w in begun.items():
                m = masks[client].get(n, torch.ones(w.shape)).double()
                sums[n] = sums.get(n, 0) + len(y) * m * (w - 0.1 * slopes[n]).detach()
                held[n] = held.get(n, 0) + len(y) * m
        weights = {
            n: torch.where(held[n] > 0, s / held[n].clamp(min=1), weights[n])
            for n, s in sums.items()
        }
        assert all(
            torch.allclose(states[i].weights[n].double(), w, atol=1e-5) for n, w in weights.items()
        )
        later = states[i].memories["fedpai"].masks
        assert all(same(later[client], masks[client]) for client in range(3)), "once and for all"


def test_fedpai_with_the_servers_mask_keeps_the_best_of_the_clients_sums():
    given = {**SMALL, "method": "fedpai", "score": "snip", "sparsity": 0.7}
    config = configure({**given, "method_options": {"masks": "server"}})
    _, asked, states = overheard(config)
    start = next(q for q, _, _ in asked if q.kind == "score").weights
    slopes = 0.0
    for x, y in (data(house_of(config), client) for client in range(3)):
        slopes = slopes + len(y) * flat(gradients(start, x, y))
    mask = flat(states[0].masks)
    kept_by(mask, (flat(start) * slopes).abs(), count(mask, 0.7))
    assert all(torch.equal(flat(q.masks), mask) for q, _, _ in asked if q.kind == "tune")


def test_ssfl_keeps_what_the_plain_mean_of_clients_saliency_is_largest_of():
    given = {**SMALL, "method": "ssfl", "sparsity": 0.7, "score_examples": 10_000, "rounds": 4}
    config = configure({**given, "lr_schedule": "constant"})
    host = house_of(config)
    _, asked, states = overheard(config)
    start = next(q for q, _, _ in asked if q.kind == "score").weights
    own = [flat(start) * flat(gradients(start, *data(host, client))) for client in range(3)]
    mask = states[0].masks
    kept_by(flat(mask), sum(each.abs() for each in own) / 3, count(flat(mask), 0.7))
    weights = {n: w.double() * mask.get(n, 1) for n, w in start.items()}
    for state in states:
        sums, labels = dict.fromkeys(weights, 0.0), 0
        for client in range(3):
            x, y = data(host, client)
            slopes = gradients(weights, x, y)
            sums = {n: s + len(y) * mask.get(n, 1) * slopes[n] for n, s in sums.items()}
            labels += len(y)
        weights = {n: w - 0.1 * sums[n] / labels for n, w in weights.items()}
        assert all(
            torch.allclose(state.weights[n].double(), w, atol=1e-5) for n, w in weights.items()
        )


def test_movement_pruning_remembers_all_rounds():
    given = {**SMALL, "method": "movement-pruning", "rounds": 3, "warmup": 1, "end": 3}
    config = configure({**given, "sparsity": 0.3, "lr_schedule": "constant"})
    host = house_of(config)
    _, asked, states = overheard(config)
    moved = dict.fromkeys(LAYERS, 0.0)
    tuned = [q for q, _, _ in asked if q.kind == "tune"]
    for question, state in zip(tuned, states, strict=True):
        labels = 0
        now = dict.fromkeys(LAYERS, 0.0)
        for client in range(3):
            x, y = data(host, client)
            slopes = gradients(question.weights, x, y)
            now = {n: now[n] - len(y) * question.weights[n].double() * slopes[n] for n in LAYERS}
            labels += len(y)
        moved = {n: (moved[n] + now[n] / labels) * question.masks[n] for n in LAYERS}
        alive, mask = flat(question.masks), flat(state.masks)
        kept_by(mask[alive], flat(moved)[alive], int(mask.sum()))
        moved = {n: m * state.masks[n] for n, m in moved.items()}
        memory = state.memories["movement-pruning"].moved
        assert all(torch.allclose(memory[n].double(), moved[n], atol=1e-6) for n in LAYERS)
    for state, part in zip(states, (0.0, 1 - 0.5**3, 1.0), strict=True):  # cubic
        assert int(flat(state.masks).sum()) == count(flat(state.masks), 0.3 * part)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "fedpai", "score": "taylor"}, "^score='taylor': it prunes at initialisation"),
        ({"method": "fedpai", "secure": "secagg"}, "^secure='secagg': clients train under masks"),
        ({"method": "rigl", "score": "taylor"}, "^score='taylor': method rigl sets it"),
        ({"method": "fedprllm", "combine": "sum"}, "^combine='sum': method fedprllm sets it"),
        ({"method": "movement-pruning", "score_during": "pass"}, "^score-during='pass': method"),
    ],
)
def test_what_a_composition_is_not(given, says):
    with pytest.raises(ConfigError, match=says):
        check_method(configure({"task": "digits", "model": "mlp", **given}))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"method": "fjord", "unit": "row", "method_options": {"widths": (0.5, 0.25)}}, "with 1.0"),
        (
            {"method": "dispfl", "warmup": 0, "end": 1, "method_options": {"tiers": (0.5, 0.2)}},
            "^sparsity=0.7: tiers say how dense",
        ),
        ({"method": "heterofl", "method_options": {"tiers": 0.5}}, "with 1.0 among them"),
        ({"method": "depthfl", "sparsity": 0.0, "method_options": {"depths": 0.5}}, "1.0 among"),
        ({"method": "fedselect", **UNPRUNED, "scope": "row"}, "^scope='row': nothing is"),
        ({"method": "spafl", **UNPRUNED, "score": "fisher"}, "^score='fisher': thresholds"),
        ({"method": "spafl", **UNPRUNED, "warmup": 1}, "^warmup=1: thresholds alone prune"),
        ({"method": "fedselect", **UNPRUNED, "end": 3}, "^end=3: nothing is pruned; allowed: lea"),
        ({"method": "lotteryfl", "score_examples": 8}, "^score-examples=8: nobody is asked"),
        ({"method": "dispfl", "warmup": 0, "end": 1, "weighting": "labels"}, "^weighting='labels'"),
        ({"method": "fedrts", "schedule": "regrow", "regrow": 0.2}, "^regrow=0.2: the method's"),
        ({"method": "prunefl", "regrow": 0.2}, "^regrow=0.2: as much is exchanged as pays"),
        (
            {"method": "fedpai", "warmup": 0, "end": 1, "score": "snip", "score_cohort": "all"},
            "^sc",
        ),
        (
            {"method": "fedtiny", "method_options": {"candidates": 1, "spread": 0.3}},
            "leave spread out",
        ),
    ],
)
def test_options_of_methods_that_nothing_would_read_or_train_by_are_refused(keys, says):
    with pytest.raises(ConfigError, match=says):
        check_method(tiny(**keys))
