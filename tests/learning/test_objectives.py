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

Named = dict[str, Tensor]


def weights(seed: int = 0) -> Named:
    gen = torch.Generator().manual_seed(seed)
    named = {"a": (3, 4), "b": (2, 3)}
    return {n: torch.randn(s, generator=gen, dtype=torch.float64) for n, s in named.items()}


# Unit 0: two rows of a; 1: the third row and a column of b; the rest of b is in none.
UNITS = {
    "a": torch.tensor([[0] * 4, [0] * 4, [1] * 4], dtype=torch.int32),
    "b": torch.tensor([[-1, 1, -1], [-1, 1, -1]], dtype=torch.int32),
}


def group_lasso(w: Named) -> float:
    one, other = w["a"][:2], torch.cat([w["a"][2], w["b"][:, 1]])
    return 8**0.5 * float(one.norm()) + 6**0.5 * float(other.norm())


TERMS: dict[str, tuple[Term, Callable[[Named], float]]] = {
    "proximity": (
        proximity(weights(1), 0.3),
        lambda w: 0.15 * sum(float(((w[n] - s) ** 2).sum()) for n, s in weights(1).items()),
    ),
    "l1": (l1(["a"], 0.3), lambda w: 0.3 * float(w["a"].abs().sum())),
    "l2": (l2(["b"], 0.3), lambda w: 0.15 * float((w["b"] ** 2).sum())),
    "group lasso": (unit_norms(UNITS, 0.3), lambda w: 0.3 * group_lasso(w)),
}


def leaves(slope: float) -> dict[str, nn.Parameter]:
    """The weights as parameters, each with this for its gradient."""
    model = {n: nn.Parameter(w) for n, w in weights().items()}
    for p in model.values():
        p.grad = torch.full_like(p, slope)
    return model


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_its_formula_and_its_gradients_are_differences(name):
    term, formula = TERMS[name]
    assert float(term(weights())) == pytest.approx(formula(weights()), rel=1e-12)
    model = leaves(1.0)
    add_gradients([term, term], model)
    for n, p in model.items():
        for at in range(p.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                moved = weights()
                moved[n].view(-1)[at] += step
                ends.append(float(term(moved)))
            slope = (ends[0] - ends[1]) / 2e-6
            assert float(p.grad.view(-1)[at]) == pytest.approx(1 + 2 * slope, abs=1e-7)


def test_a_unit_of_zeros_has_no_slope_and_no_nan():
    model = leaves(0.0)
    model["a"].data[:2] = 0.0
    add_gradients([unit_norms(UNITS, 1.0), l1(["a"], 1.0)], model)
    assert not model["a"].grad[:2].any()
    assert model["a"].grad[2].all()
    assert unit_sizes(UNITS).tolist() == [8, 6]


def test_what_the_loss_does_not_reach_is_left_alone():
    model = leaves(0.0)
    model["b"].grad = None
    add_gradients([l2(["a", "b"], 1.0)], model)
    assert torch.equal(model["a"].grad, model["a"].detach())
    assert model["b"].grad is None


@pytest.mark.parametrize("which", ["l1", "group lasso", "both"])
def test_a_proximal_step_is_the_minimum_that_defines_it(which):
    """Nothing near it has less of |u - w|²/2 + lr·term(u)."""
    lr, start = 0.1, weights()
    start["a"][2] *= 0.1
    start["b"][:, 1] *= 0.1
    of_l1 = (softened(["a", "b"], 4.0), l1(["a", "b"], 4.0))
    of_units = (shrunk_units(UNITS, 4.0), unit_norms(UNITS, 4.0))
    given = {"l1": [of_l1], "group lasso": [of_units], "both": [of_l1, of_units]}[which]
    after = {n: w.clone() for n, w in start.items()}
    for step, _ in given:
        step(after, lr)

    def cost(w: Named) -> float:
        near = sum(float(((w[n] - start[n]) ** 2).sum()) / 2 for n in w)
        return near + lr * sum(float(term(w)) for _, term in given)

    best = cost(after)
    assert best < cost(start)
    gen = torch.Generator().manual_seed(0)
    for size in (1e-4, 1e-2, 0.3):
        for _ in range(100):
            away = {n: torch.randn(w.shape, generator=gen).double() for n, w in after.items()}
            assert cost({n: w + size * away[n] for n, w in after.items()}) > best
    flat = torch.cat([w.flatten() for w in after.values()])
    assert 0 < int((flat == 0).sum()) < len(flat)


def test_zeros_have_no_sign_and_what_is_in_no_unit_stays():
    after, nothing = weights(), {"w": torch.tensor([1.0, -2.0])}
    shrunk_units(UNITS, 1e6)(after, 1.0)
    assert torch.equal(after["b"][:, 0], weights()["b"][:, 0])
    softened(["b"], 1e6)(after, 1.0)
    for w in after.values():
        assert not w.any()
        assert not torch.signbit(w).any()
    shrunk_units({"w": torch.tensor([-1, -1])}, 0.5)(nothing, 0.1)  # no unit is left
    assert nothing["w"].tolist() == [1.0, -2.0]


ALL = {"l1": 0.01, "l2": 0.01, "group_lasso": 0.01, "unit": "row", "proximal": 0.1}


@pytest.mark.parametrize("shrinkage", ["gradient", "proximal"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_weights_stay_zero_under_every_term(optimizer, shrinkage, cnn):
    host, question = cnn
    config = tiny(optimizer=optimizer, shrinkage=shrinkage, **ALL)
    model = copy.deepcopy(host.model)
    load_into(model, masked(question.weights, question.masks))
    units = unit_labels(host.layout, "row")
    batch = {n: t[:8] for n, t in host.shards[0].train.items()}
    tune(model, question.masks, iter([[batch]] * 3), TASKS["digits"], 0.05, config, units=units)
    for name, mask in question.masks.items():
        assert not state_of(model)[name][~mask].any()
        assert not torch.equal(state_of(model)[name], question.weights[name])


def pulled(count: int = 1, **keys: object) -> float:
    """Plain steps of 0.1 on (w - 3)²/2 from w = 1, with a term on w."""

    def loss(model: nn.Module, _batch: Part) -> Loss:
        return Loss((model.weight.squeeze() - 3.0).square() / 2, 1, 0)

    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    config = tiny(momentum=0.0, clip=0.0, **keys)
    masks = {"weight": torch.ones(1, 1, dtype=torch.bool)}
    steps = iter([[{"x": torch.zeros(1)}]] * count)
    tune(model, masks, steps, replace(TASKS["digits"], loss=loss), 0.1, config)
    return model.weight.item()


def test_terms_act_in_the_gradient_or_after_the_step():
    assert pulled() == pytest.approx(1.2)
    assert pulled(l2=0.5) == pytest.approx(1.2 - 0.1 * 0.5)
    assert pulled(l1=0.5, shrinkage="gradient") == pytest.approx(1.2 - 0.1 * 0.5)
    assert pulled(l1=0.5) == pytest.approx(1.2 - 0.1 * 0.5)
    assert pulled(l1=50.0, shrinkage="gradient") == pytest.approx(1.2 - 5.0)
    assert pulled(l1=50.0) == 0.0
    once = pulled(proximal=0.5)
    assert once == pytest.approx(1.2), "it is where it was sent"
    assert pulled(2, proximal=0.5) == pytest.approx(once - 0.1 * (once - 3.0 + 0.5 * (once - 1.0)))


@pytest.mark.slow
def test_zeros_of_proximal_steps_survive_the_average_and_are_not_pruned():
    plain, gradient = played(tiny()), played(tiny(l1=0.02, shrinkage="gradient"))
    proximal = played(tiny(l1=0.02))
    assert plain.rows[1]["zeros"] is gradient.rows[1]["zeros"] is None
    assert proximal.rows[1]["zeros"] > 100
    assert proximal.rows[1]["removed"] == 0
    weights, masks = proximal.state.weights, proximal.state.masks
    zeros = sum(int((weights[n][m] == 0).sum()) for n, m in masks.items())
    assert proximal.rows[-1]["zeros"] == zeros


@pytest.mark.slow
def test_group_lasso_empties_whole_units():
    # The smallest row has 9 weights: its threshold a step is 0.05 * 0.5 * 3.
    result = played(tiny(group_lasso=0.5, unit="row", sparsity=0.5))
    weights, masks = result.state.weights, result.state.masks
    rows = [(weights[n].flatten(1), m.flatten(1)) for n, m in masks.items()]
    empty = sum(int(((w == 0).all(1) & m.any(1)).sum()) for w, m in rows)
    assert 0 < empty <= result.rows[-1]["zeros"]


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
