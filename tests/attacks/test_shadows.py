import numpy as np
import pytest
import torch

from fedprune import RunConfig
from fedprune.attacks.membership import each_in_turn
from fedprune.attacks.roc import auc
from fedprune.attacks.shadows import (
    _setting,
    dense_and_pruned,
    everything,
    halves,
    pooled_parts,
    train_shadow,
)
from fedprune.selection.select import select
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import examples
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import copied, masked
from tests.runs import tiny


def quick(**changes: object) -> RunConfig:
    keys = {"model": "mlp", "batch_size": 64, "local_steps": 20, "lr": 0.1, "alpha": 1.0}
    return tiny(**{**keys, **changes})


def test_every_example_is_in_half_of_the_models():
    inside = halves(10, 57, 3)
    assert inside.shape == (10, 57)
    assert (inside.sum(0) == 5).all()
    assert len({tuple(row) for row in inside.tolist()}) == 10
    assert (halves(10, 57, 3) == inside).all()
    assert (halves(10, 57, 4) != inside).any()
    for models in (4, 9):
        with pytest.raises(ValueError, match=r"allowed: 6, 8, 10"):
            halves(models, 10, 0)


def test_all_examples_of_all_clients_are_there_once():
    shards = tasks_of("")["digits"].shards(quick())
    pool = everything(shards)
    assert examples(pool) == 1797
    assert sum(int(s.train["labels"].sum()) for s in shards) <= int(pool["labels"].sum())


def test_rows_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="inputs: rows of shapes"):
        pooled_parts([{"inputs": torch.zeros(2, 3)}, {"inputs": torch.zeros(2, 4)}])


def test_a_removed_weight_stays_zero_while_it_is_trained():
    config = quick()
    on = _setting(config, 0)
    before = copied(state_of(on.model))
    masks = select({n: before[n].abs() for n in on.layout.prunable}, 0.5, layout=on.layout)
    load_into(on.model, masked(before, masks))
    part = everything(on.task.shards(config))
    train_shadow(on, part, masks, 0, 1)
    after = state_of(on.model)
    for name, mask in masks.items():
        assert (after[name][~mask] == 0.0).all()
        assert not torch.equal(after[name][mask], before[name][mask])


def test_two_models_of_one_study_begin_differently():
    first, second, again = (_setting(quick(), which) for which in (0, 1, 0))
    name = first.layout.prunable[0]
    assert not torch.equal(state_of(first.model)[name], state_of(second.model)[name])
    assert torch.equal(state_of(first.model)[name], state_of(again.model)[name])


@pytest.mark.slow
def test_members_are_remembered_and_pruning_by_nothing_is_the_dense_model():
    told: list[int] = []
    config = quick(local_steps=150)
    dense, sparse = dense_and_pruned(config, (0.0, 0.9), 6, lambda: told.append(1))
    assert len(told) == 6
    again = dense_and_pruned(config, (0.0,), 6)[0]
    np.testing.assert_array_equal(again.confidence, dense.confidence)
    assert (dense.sparsity, sparse.sparsity) == (0.0, 0.9)
    assert dense.confidence.shape == dense.inside.shape == (6, 1797)
    for attacked in (dense, sparse):
        assert attacked.accuracy[0] > attacked.accuracy[1] > 0.9
        members, others = each_in_turn(attacked.confidence, attacked.inside)
        assert auc(members, others) > 0.53
        # The same attack on who was told to be a member by a coin finds nothing.
        wrong = np.random.default_rng(0).permuted(attacked.inside, axis=1)
        scores = attacked.confidence
        assert abs(auc(scores[wrong], scores[~wrong]) - 0.5) < 0.02
