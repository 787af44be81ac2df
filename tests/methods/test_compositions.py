"""Compositions and masks from the start, against their rules in plain torch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune import RunConfig
from fedprune.config import configure
from fedprune.methods.catalog import check_method
from fedprune.options.refusal import ConfigError
from tests.gallery import UNPRUNED
from tests.perceptron import (
    LAYERS,
    SMALL,
    count,
    data,
    flat,
    gradients,
    kept_by,
    labels,
    mean_of_holders,
    summed_gradients,
)
from tests.runs import house_of, overheard, same, tiny

Named = dict[str, Tensor]


def trained(config: RunConfig, client: int, weights: Named, masks: Named) -> tuple[int, Named]:
    """How many labels a client has, and its weights after a step under masks."""
    begun, own = {n: w.double() * masks.get(n, 1) for n, w in weights.items()}, data(config, client)
    slopes = gradients(begun, *own)
    return len(own[1]), {n: w - 0.1 * slopes[n] for n, w in begun.items()}


def near(found: Named, wanted: Named) -> None:
    assert all(torch.allclose(found[n].double(), w, atol=1e-5) for n, w in wanted.items())


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
    whole = torch.cat([m.flatten() for m in masks.values()])
    assert int(whole.sum()) == count(whole, 0.8)
    assert "head.weight" not in masks, "the output layer is not pruned"
    sizes = {n: house_of(config).model.state_dict()[n].abs() for n in masks}
    largest = all(m.flatten()[sizes[n].flatten().argsort()[-9:]].all() for n, m in masks.items())
    assert largest == (method == "feddst")
    if method == "rigl":
        assert any((states[1].masks[n] & ~m).any() for n, m in masks.items())


def test_fedpai_is_its_two_steps():
    given = {**SMALL, "method": "fedpai", "score": "snip", "sparsity": 0.7, "rounds": 4}
    config = configure({**given, "lr_schedule": "constant"})
    _, asked, states = overheard(config)
    start = weights = next(q for q, _, _ in asked if q.kind == "own").weights
    masks = states[0].memories["fedpai"].masks
    for client in range(3):
        slopes = gradients(start, *data(config, client))
        kept_by(flat(masks[client]), (flat(start) * flat(slopes)).abs(), count(flat(masks[0]), 0.7))
    for state in states:
        parts = [
            (*trained(config, client, weights, masks[client]), masks[client]) for client in range(3)
        ]
        weights = mean_of_holders(parts, weights)
        near(state.weights, weights)
        later = state.memories["fedpai"].masks
        assert all(same(later[client], masks[client]) for client in range(3)), "once and for all"


def test_fedpai_with_the_servers_mask_keeps_the_best_of_the_clients_sums():
    given = {**SMALL, "method": "fedpai", "score": "snip", "sparsity": 0.7}
    config = configure({**given, "method_options": {"masks": "server"}})
    _, asked, states = overheard(config)
    start = next(q for q, _, _ in asked if q.kind == "score").weights
    mask = flat(states[0].masks)
    worth = flat(start) * flat(summed_gradients(config, start))
    kept_by(mask, worth.abs(), count(mask, 0.7))
    assert all(torch.equal(flat(q.masks), mask) for q, _, _ in asked if q.kind == "tune")


def test_ssfl_keeps_what_the_plain_mean_of_clients_saliency_is_largest_of():
    given = {**SMALL, "method": "ssfl", "sparsity": 0.7, "score_examples": 10_000, "rounds": 4}
    config = configure({**given, "lr_schedule": "constant"})
    _, asked, states = overheard(config)
    start = weights = next(q for q, _, _ in asked if q.kind == "score").weights
    own = [flat(start) * flat(gradients(start, *data(config, client))) for client in range(3)]
    mask = states[0].masks
    kept_by(flat(mask), sum(each.abs() for each in own) / 3, count(flat(mask), 0.7))
    for state in states:
        parts = [(*trained(config, client, weights, mask), mask) for client in range(3)]
        weights = mean_of_holders(parts, {n: torch.zeros_like(w) for n, w in start.items()})
        near(state.weights, weights)


def test_movement_pruning_remembers_all_rounds():
    given = {**SMALL, "method": "movement-pruning", "rounds": 3, "warmup": 1, "end": 3}
    config = configure({**given, "sparsity": 0.3, "lr_schedule": "constant"})
    _, asked, states = overheard(config)
    moved = dict.fromkeys(LAYERS, 0.0)
    tuned = [q for q, _, _ in asked if q.kind == "tune"]
    for question, state in zip(tuned, states, strict=True):
        slopes = summed_gradients(config, question.weights)
        now = {n: -question.weights[n].double() * slopes[n] / labels(config) for n in LAYERS}
        moved = {n: (moved[n] + now[n]) * question.masks[n] for n in LAYERS}
        alive, mask = flat(question.masks), flat(state.masks)
        kept_by(mask[alive], flat(moved)[alive], int(mask.sum()))
        moved = {n: m * state.masks[n] for n, m in moved.items()}
        memory = state.memories["movement-pruning"].moved
        assert all(torch.allclose(memory[n].double(), moved[n], atol=1e-6) for n in LAYERS)
    for state, part in zip(states, (0.0, 1 - 0.5**3, 1.0), strict=True):  # cubic
        assert int(flat(state.masks).sum()) == count(flat(state.masks), 0.3 * part)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("fedpai", {"score": "taylor"}, "^score='taylor': it prunes at initialisation"),
    ("fedpai", {"secure": "secagg"}, "^secure='secagg': clients train under masks"),
    ("fedpai", {"score_cohort": "all"}, "^score-cohort="),
    ("rigl", {"score": "taylor"}, "^score='taylor': method rigl sets it"),
    ("fedprllm", {"combine": "sum"}, "^combine='sum': method fedprllm sets it"),
    ("movement-pruning", {"score_during": "pass"}, "^score-during='pass': method"),
    ("fjord", {"unit": "row", "method_options": {"widths": (0.5, 0.25)}}, "with 1.0"),
    ("dispfl", {"sparsity": 0.7, "method_options": {"tiers": (0.5, 0.2)}}, "^sparsity=0.7: tiers"),
    ("dispfl", {"weighting": "labels"}, "^weighting='labels'"),
    ("dispfl", {"server_optimizer": "momentum"}, "^server-optimizer="),
    ("heterofl", {"method_options": {"tiers": 0.5}}, "with 1.0 among them"),
    ("depthfl", {"sparsity": 0.0, "method_options": {"depths": 0.5}}, "1.0 among"),
    ("fedselect", {**UNPRUNED, "scope": "row"}, "^scope='row': nothing is"),
    ("fedselect", {**UNPRUNED, "end": 3}, "^end=3: nothing is pruned; allowed: lea"),
    ("spafl", {**UNPRUNED, "score": "fisher"}, "^score='fisher': thresholds"),
    ("spafl", {**UNPRUNED, "warmup": 1}, "^warmup=1: thresholds alone prune"),
    ("lotteryfl", {"score_examples": 8}, "^score-examples=8: nobody is asked"),
    ("fedrts", {"schedule": "regrow", "regrow": 0.2}, "^regrow=0.2: the method's"),
    ("prunefl", {"regrow": 0.2}, "^regrow=0.2: as much is exchanged as pays"),
    ("fedtiny", {"method_options": {"candidates": 1, "spread": 0.3}}, "leave spread out"),
    ("feddst", {"secure": "secagg"}, "^secure="),
    ("feddst", {"dp": "client", "dp_noise": 1.0}, "^dp="),
    ("feddst", {"unit": "row"}, "^unit="),
    ("zerofl", {"secure": "secagg"}, r"^secure='secagg': .* of their own; allowed: none"),
    ("sparsyfed", {"secure": "secagg"}, r"^secure='secagg': .* of their own; allowed: none"),
    *(
        (
            method,
            {"schedule": "linear", "optimizer": "sgd", **keys},
            rf"^{next(iter(keys))}=.*; allowed: ",
        )
        for method in ("zerofl", "sparsyfed", "complement-sparsification")
        for keys in (
            {"dp": "client", "dp_noise": 1.0},
            {"scaffold": True},
            {"unit": "row"},
            {"shrink": "every"},
            {"score": "taylor"},
        )
    ),
]


@pytest.mark.parametrize(("method", "keys", "says"), REFUSED)
def test_what_a_method_would_not_read_or_does_not_go_with_is_refused(method, keys, says):
    given = {"task": "digits", "model": "mlp", **keys, "method": method}
    with pytest.raises(ConfigError, match=says):
        check_method(configure({n: x for n, x in given.items() if x is not None}))
