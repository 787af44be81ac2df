import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedprune import TASKS, Loss
from fedprune.config.rates import learning_rate
from fedprune.learning.local_training import tune
from fedprune.learning.objectives import (
    Term,
    add_gradients,
    l1,
    l2,
    proximity,
    shrunk_units,
    softened,
    unit_norms,
    unit_sizes,
)
from fedprune.learning.optimizers import OPTIMIZERS
from fedprune.selection.units import unit_labels
from fedprune.tasks.task import Part
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import masked
from tests.runs import played, tiny


def weights(seed: int = 0) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    named = {"a": (3, 4), "b": (2, 3)}
    return {n: torch.randn(s, generator=gen, dtype=torch.float64) for n, s in named.items()}


# Unit 0: two rows of a; 1: the third row and a column of b; the rest of b is in none.
UNITS = {
    "a": torch.tensor([[0] * 4, [0] * 4, [1] * 4], dtype=torch.int32),
    "b": torch.tensor([[-1, 1, -1], [-1, 1, -1]], dtype=torch.int32),
}

TERMS: dict[str, tuple[Term, Callable[[dict[str, Tensor]], float]]] = {
    "proximity": (
        proximity(weights(1), 0.3),
        lambda w: 0.15 * sum(float(((w[n] - s) ** 2).sum()) for n, s in weights(1).items()),
    ),
    "l1": (l1(["a"], 0.3), lambda w: 0.3 * float(w["a"].abs().sum())),
    "l2": (l2(["b"], 0.3), lambda w: 0.15 * float((w["b"] ** 2).sum())),
    "group lasso": (
        unit_norms(UNITS, 0.3),
        lambda w: (
            0.3
            * (
                8**0.5 * float(w["a"][:2].norm())
                + 6**0.5 * float(torch.cat([w["a"][2], w["b"][:, 1]]).norm())
            )
        ),
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_its_formula(name):
    term, formula = TERMS[name]
    assert float(term(weights())) == pytest.approx(formula(weights()), rel=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_gradients_of_terms_are_differences(name):
    term = TERMS[name][0]
    model = {n: nn.Parameter(w) for n, w in weights().items()}
    for p in model.values():
        p.grad = torch.ones_like(p)
    add_gradients([term, term], model)
    for n, p in model.items():
        for at in range(p.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                moved = copy.deepcopy(weights())
                moved[n].view(-1)[at] += step
                ends.append(float(term(moved)))
            slope = (ends[0] - ends[1]) / 2e-6
            assert float(p.grad.view(-1)[at]) == pytest.approx(1 + 2 * slope, abs=1e-7)


def test_a_unit_of_zeros_has_no_slope_and_no_nan():
    model = {n: nn.Parameter(w) for n, w in weights().items()}
    model["a"].data[:2] = 0.0
    for p in model.values():
        p.grad = torch.zeros_like(p)
    add_gradients([unit_norms(UNITS, 1.0), l1(["a"], 1.0)], model)
    grad = model["a"].grad
    assert not grad[:2].any()
    assert grad[2].all()


def test_what_the_loss_does_not_reach_is_left_alone():
    model = {n: nn.Parameter(w) for n, w in weights().items()}
    model["a"].grad = torch.zeros_like(model["a"])
    add_gradients([l2(["a", "b"], 1.0)], model)
    assert torch.equal(model["a"].grad, model["a"].detach())
    assert model["b"].grad is None


def test_sizes_of_units_count_over_tensors():
    assert unit_sizes(UNITS).tolist() == [8, 6]


@pytest.mark.parametrize("which", ["l1", "group lasso", "both"])
def test_a_proximal_step_is_the_minimum_that_defines_it(which):
    """Nothing near it has less of |u - w|²/2 + lr·term(u)."""
    lr, start = 0.1, weights()
    start["a"][2] *= 0.1
    start["b"][:, 1] *= 0.1
    steps = {"l1": [softened(["a", "b"], 4.0)], "group lasso": [shrunk_units(UNITS, 4.0)]}
    terms = {"l1": [l1(["a", "b"], 4.0)], "group lasso": [unit_norms(UNITS, 4.0)]}
    names = ["l1", "group lasso"] if which == "both" else [which]
    after = {n: w.clone() for n, w in start.items()}
    for name in names:
        for step in steps[name]:
            step(after, lr)

    def cost(w: dict[str, Tensor]) -> float:
        near = sum(float(((w[n] - start[n]) ** 2).sum()) / 2 for n in w)
        return near + lr * sum(float(t(w)) for name in names for t in terms[name])

    best = cost(after)
    assert best < cost(start)
    gen = torch.Generator().manual_seed(0)
    for size in (1e-4, 1e-2, 0.3):
        for _ in range(100):
            moved = {
                n: w + size * torch.randn(w.shape, generator=gen, dtype=w.dtype)
                for n, w in after.items()
            }
            assert cost(moved) > best
    assert any(bool((w == 0).any()) for w in after.values())
    assert any(bool((w != 0).any()) for w in after.values())


def test_zeros_have_no_sign_and_what_is_in_no_unit_stays():
    after = weights()
    shrunk_units(UNITS, 1e6)(after, 1.0)
    assert not after["a"].any()
    assert not torch.signbit(after["a"]).any()
    assert torch.equal(after["b"][:, 0], weights()["b"][:, 0])
    softened(["b"], 1e6)(after, 1.0)
    assert not after["b"].any()
    assert not torch.signbit(after["b"]).any()


ALL = {"l1": 0.01, "l2": 0.01, "group_lasso": 0.01, "unit": "row", "proximal": 0.1}


@pytest.mark.parametrize("shrinkage", ["gradient", "proximal"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_weights_stay_zero_under_every_term(optimizer, shrinkage, cnn):
    host, question = cnn
    config = tiny(optimizer=optimizer, shrinkage=shrinkage, **ALL)
    model = copy.deepcopy(host.model)
    load_into(model, masked(question.weights, question.masks))
    units = unit_labels(host.layout, "row")
    part = host.shards[0].train
    batch = {n: t[:8] for n, t in part.items()}
    tune(model, question.masks, iter([[batch]] * 3), TASKS["digits"], 0.05, config, units=units)
    for name, mask in question.masks.items():
        assert not state_of(model)[name][~mask].any()
        assert not torch.equal(state_of(model)[name], question.weights[name])


def pulled(**keys: object) -> float:
    """One plain step of 0.1 on (w - 3)²/2 from w = 1, with a term on w."""

    def loss(model: nn.Module, _batch: Part) -> Loss:
        return Loss((model.weight.squeeze() - 3.0).square() / 2, 1, 0)

    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    config = tiny(momentum=0.0, clip=0.0, **keys)
    masks = {"weight": torch.ones(1, 1, dtype=torch.bool)}
    steps = iter([[{"x": torch.zeros(1)}]])
    tune(model, masks, steps, replace(TASKS["digits"], loss=loss), 0.1, config)
    return model.weight.item()


def test_terms_act_in_the_gradient_or_after_the_step():
    assert pulled() == pytest.approx(1.2)
    assert pulled(l2=0.5) == pytest.approx(1.2 - 0.1 * 0.5)
    assert pulled(l1=0.5, shrinkage="gradient") == pytest.approx(1.2 - 0.1 * 0.5)
    assert pulled(l1=0.5) == pytest.approx(1.2 - 0.1 * 0.5)
    assert pulled(l1=50.0, shrinkage="gradient") == pytest.approx(1.2 - 5.0)
    assert pulled(l1=50.0) == 0.0


@pytest.mark.slow
def test_zeros_of_proximal_steps_survive_the_average_and_are_not_pruned():
    plain, gradient = played(tiny()), played(tiny(l1=0.02, shrinkage="gradient"))
    proximal = played(tiny(l1=0.02))
    assert plain.rows[1]["zeros"] is gradient.rows[1]["zeros"] is None
    assert proximal.rows[1]["zeros"] > 100
    assert proximal.rows[1]["removed"] == 0
    last = proximal.rows[-1]
    state = proximal.state
    alive = sum(int(m.sum()) for m in state.masks.values())
    nonzero = sum(int((state.weights[n] != 0).sum()) for n in state.masks)
    assert last["zeros"] == alive - nonzero


@pytest.mark.slow
def test_group_lasso_empties_whole_units():
    # The smallest row has 9 weights: its threshold a step is 0.05 * 0.5 * 3.
    result = played(tiny(group_lasso=0.5, unit="row", sparsity=0.5))
    state = result.state
    rows = [(state.weights[n].flatten(1), state.masks[n].flatten(1)) for n in state.masks]
    empty = sum(int(((w == 0).all(1) & m.any(1)).sum()) for w, m in rows)
    assert empty > 0
    assert result.rows[-1]["zeros"] >= empty


def test_the_learning_rate_begins_anew_at_every_pruning():
    keys = {"rounds": 9, "warmup": 3, "end": 6, "frequency": 2, "schedule": "linear", "lr": 1.0}

    def rates(**more: object) -> list[float]:
        config = tiny(**keys, **more)
        return [round(learning_rate(config, r), 6) for r in range(1, 10)]

    plain = rates(lr_schedule="linear")
    assert plain == [round(1 - i / 9, 6) for i in range(9)]
    # Prunings in rounds 4 and 6: stretches of 3, 2 and 4 rounds.
    expected = [1, 2 / 3, 1 / 3, 1, 1 / 2, 1, 3 / 4, 2 / 4, 1 / 4]
    assert rates(lr_schedule="linear", lr_rewind=True) == [round(x, 6) for x in expected]
    assert rates(lr_rewind=True)[3] == rates(lr_rewind=True)[5] == 1.0


def test_where_no_unit_is_left_a_group_lasso_leaves_weights_as_they_are():
    now = {"w": torch.tensor([1.0, -2.0])}
    shrunk_units({"w": torch.tensor([-1, -1])}, 0.5)(now, 0.1)
    assert now["w"].tolist() == [1.0, -2.0]
