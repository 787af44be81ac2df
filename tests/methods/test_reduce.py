"""Redundancy taken out in the middle of a run: the same function where exact, less of it always."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune import RunConfig, Shard, federate, load
from fedprune.client.host import Host, build_host
from fedprune.engines.inline import inline_port
from fedprune.methods.acting import begun
from fedprune.methods.thinning import thinned
from fedprune.opening import opening_of
from fedprune.protocol.models import shaped
from fedprune.protocol.port import Port
from fedprune.redundancy.unit_weights import producers_of, without_units
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.state import State
from fedprune.structure.layers import input_rows, layers_of, watching
from fedprune.structure.layout import as_rows
from fedprune.structure.low_rank_layers import Factored
from fedprune.tasks.language import windows
from fedprune.tasks.task import Part
from fedprune.tasks.token_rows import encode
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import count_kept
from tests.runs import same, tiny

TEXTS = ["To be, or not to be: that is the question.\n" * 20, "O Romeo! O, O, exit.\n" * 9]
PARTS = [windows(encode(text), length=16) for text in TEXTS]


def reduces(**keys: Any) -> RunConfig:
    """Three rounds on Shakespeare's LLaMA: one dense, one that prunes, one that reduces."""
    sizes = {"clients": 2, "cohort": 2, "rounds": 3, "warmup": 1, "end": 2, "local_steps": 1}
    about = {"task": "shakespeare", "sparsity": 0.2, "length": 16}
    return tiny(**{**about, **sizes, "reduce": ("low-rank",), **keys})


def host_with(config: RunConfig, parts: Sequence[Part]) -> Host:
    """A client for each part, which is all that it has."""
    return build_host(config, {p: Shard(part, part, part) for p, part in enumerate(parts)})


def opened(config: RunConfig) -> tuple[State, Plan, Port]:
    state, plan = opening_of(config, None, None)
    return replace(state, round=3), plan, inline_port(host_with(config, PARTS))


def logits(config: RunConfig, state: State) -> Tensor:
    model, _ = shaped(config, state.edits)
    load_into(model, state.weights)
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(12).reshape(2, 6)).logits


def reduce(
    state: State, plan: Plan, port: Port, cohort: Sequence[int] = (0, 1)
) -> tuple[State, Plan, Any]:
    """A round's reduction: the state, its plan, and what is told of it."""
    r = Round(state.round, plan, cohort)
    after, r, notes = thinned(begun(state, r), r, port)
    assert r.plan.layout.shapes == {n: w.shape for n, w in after.weights.items()}
    return after, r.plan, notes.reduced


def changed(state: State, weights: dict[str, Tensor]) -> State:
    model = replace(state.model, weights={**state.weights, **weights})
    return replace(state, model=model)


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, atol=1e-5 * float(right.abs().max()))


def test_a_matrix_of_low_rank_becomes_factors_that_do_the_same():
    config = reduces(rank_energy=0.999999)
    state, plan, port = opened(config)
    name = "model.layers.1.mlp.down_proj.weight"
    gen = torch.Generator().manual_seed(1)
    rows, columns = state.weights[name].shape
    thin = torch.randn(rows, 3, generator=gen) @ torch.randn(3, columns, generator=gen) / 20
    state = changed(state, {name: thin})
    after, fits, told = reduce(state, plan, port)
    assert told["ranks"] == {name: 3}
    assert told["rank_errors"][name] < 1e-3
    assert [(e.kind, e.path, e.kept) for e in after.edits] == [("rank", name[:-7], (3,))]
    assert close(logits(config, after), logits(config, state))
    less = rows * columns - 3 * (rows + columns)
    assert told["parameters"] - told["parameters_after"] == less
    assert count_kept(state.masks) - count_kept(after.masks) == less
    assert after.masks.keys() == set(fits.layout.prunable)
    assert after.book.traffic.up > 0


@pytest.mark.slow
def test_the_error_in_the_row_is_the_one_on_the_cohort_s_inputs():
    config = reduces(rank_budget=0.5)
    state, plan, port = opened(config)
    after, _, told = reduce(state, plan, port, [1])
    name = max(told["rank_errors"], key=told["rank_errors"].get)  # others are rounding
    path, host = name.removesuffix(".weight"), host_with(config, PARTS)
    load_into(host.model, state.weights)
    seen: list[Tensor] = []

    def see(_name: str, layer: Any, x: Tensor, _y: Tensor) -> None:
        seen.append(input_rows(layer, x).flatten(0, 2).double())

    with watching(layers_of(host.model.eval(), [name]), see), torch.no_grad():
        host.task.loss(host.model, host.shards[1].train)
    x, w = torch.cat(seen).t(), state.weights[name].double()
    product = after.weights[f"{path}.1.weight"] @ after.weights[f"{path}.0.weight"]
    error = ((w - product.double()) @ x).norm() / (w @ x).norm()
    assert told["rank_errors"][name] == pytest.approx(float(error), rel=1e-2)
    plain = replace(plan, config=reduces(rank_budget=0.5, rank_by="weights"))
    other, _, _ = reduce(state, plain, port, [1])
    assert other.book.traffic.up == 0


@pytest.mark.slow
def test_a_budget_is_kept():
    for budget in (0.7, 0.4):
        state, plan, port = opened(reduces(rank_budget=budget))
        after, fits, told = reduce(state, plan, port)
        assert count_kept(after.masks) <= budget * count_kept(state.masks)
        assert sum(type(m) is Factored for m in fits.model.modules()) == len(told["ranks"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dead", "merge"])
def test_units_that_pruning_emptied_are_gone_when_ranks_are_looked_for(method):
    state, plan, port = opened(reduces(reduce=(method, "low-rank"), rank_energy=0.9))
    path = next(g.path for g in plan.layout.structure.groups if "mlp" in g.path)
    masks = without_units(state.masks, plan.layout, {path: (0, 5)})
    empty = replace(state, model=state.model.under(masks))
    after, _, told = reduce(empty, plan, port)
    assert path not in told.get("dead", {})
    (kept,) = (e.kept for e in after.edits if e.path == path)
    assert not {0, 5} & {*kept}


@pytest.mark.slow
def test_validation_decides_how_far_to_go():
    far, near = (reduces(rank_tolerance=t) for t in (10.0, 0.0))
    state, plan, port = opened(far)
    after, _, told = reduce(state, plan, port)
    assert [budget for budget, _ in told["tried"]] == [0.125]
    assert after.edits
    after, fits, told = reduce(state, replace(plan, config=near), port)
    losses = [loss for _, loss in told["tried"]]
    within = [loss <= told["loss_before"] for loss in losses]
    assert within[:-1] == [False] * (len(losses) - 1)
    if not within[-1]:
        assert (after.edits, told["ranks"], fits.edits) == ((), {}, ())
        assert len(losses) == 7
    assert after.book.traffic.evaluation > 0


def test_dead_and_duplicate_neurons_leave_the_model_without_a_trace():
    config = reduces(reduce=("dead", "merge"), shrink="never")
    state, plan, port = opened(config)
    group = next(g for g in plan.layout.structure.groups if g.path == "model.layers.1.mlp")
    names = [f"{group.path}.{name}_proj.weight" for name in ("gate", "up", "down")]
    gate, up, down = (state.weights[name].clone() for name in names)
    gate[3] = 0.0  # silu(0) is 0
    gate[7], up[7] = gate[5], up[5]
    down[:, 9] = 0.0
    state = changed(state, dict(zip(names, (gate, up, down), strict=True)))
    after, fits, told = reduce(state, plan, port)
    assert told["dead"] == {group.path: 2}
    assert told["merged"] == {group.path: 1}
    assert told["merge_errors"] == {group.path: 0.0}
    (edit,) = after.edits
    assert set(range(len(gate))) - set(edit.kept) == {3, 7, 9}
    small = next(g for g in fits.layout.structure.groups if g.path == group.path)
    assert len(producers_of(small)[0].index) == len(edit.kept)
    assert close(logits(config, after), logits(config, state))


def test_merging_alone_keeps_the_function():
    config = reduces(reduce=("merge",))
    state, plan, port = opened(config)
    group = next(g for g in plan.layout.structure.groups if g.kind == "neuron")
    weights = {p.tensor: state.weights[p.tensor].clone() for p in producers_of(group)}
    for part in producers_of(group):
        rows = as_rows(plan.layout, part.tensor, weights[part.tensor])
        rows[4] = rows[2]
    masks = {n: m.clone() for n, m in state.masks.items()}
    reader = group.parts[-1].tensor
    masks[reader][:, 2] = False  # what is added to a removed weight brings it back
    state = replace(state, model=changed(state, weights).model.under(masks))
    after, _, told = reduce(state, plan, port)
    assert told["merged"] == {group.path: 1}
    assert close(logits(config, after), logits(config, state))
    assert count_kept(after.masks) < count_kept(state.masks)
    assert after.masks[reader][:, 2].all()


def test_equal_matrices_become_one_and_stay_one():
    config = reduces(reduce=("share",), sparsity=0.0)
    state, plan, port = opened(config)
    first, second = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    state = changed(state, {second: state.weights[first].clone()})
    after, fits, told = reduce(state, plan, port)
    assert told["shared"] == [[second, first, 0.0]]
    assert second not in after.weights
    assert second not in after.masks
    assert after.book.traffic == state.book.traffic
    assert torch.equal(logits(config, after), logits(config, state))
    assert fits.layout.parameters == plan.layout.parameters - state.weights[first].numel()


def test_near_ones_are_shared_as_their_mean_only_where_that_is_asked():
    first, second = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    for within, count in ((None, 0), (0.2, 1)):
        config = reduces(reduce=("share",), sparsity=0.0, reduce_within=within)
        state, plan, port = opened(config)
        near = state.weights[first] * 1.1
        after, _, told = reduce(changed(state, {second: near}), plan, port)
        assert len(told["shared"]) == count
        if count:
            assert torch.allclose(after.weights[first], 1.05 * state.weights[first])


def test_nothing_is_reduced_where_too_few_answer():
    config = reduces()
    state, plan, port = opened(config)

    def nobody(question: Any, partitions: Any) -> Any:
        return replace(port.ask(question, partitions), total=None, answered=())

    after, fits, told = reduce(state, plan, replace(port, ask=nobody), [0, 1])
    assert (told, after.edits, fits) == (None, (), plan)
    assert after.weights is state.weights


@pytest.mark.slow
def test_factors_are_tuned_pruned_and_sent_in_the_rounds_that_follow(tmp_path):
    keys = {"reduce": ["dead", "merge", "share", "low-rank"], "reduce_round": 3, "sparsity": 0.9}
    keys |= {"rank_budget": 0.9, "rounds": 5, "warmup": 1, "end": 4, "baselines": ["dense"]}
    result = federate(tiny(**keys), folder=tmp_path)
    rows = [row for row in result.rows if row["arm"] == "pruned"]
    assert not any(row["failures"] for row in rows)
    assert rows[4]["sparsity"] > rows[2]["sparsity"]
    assert [row["reduced"] is not None for row in rows] == [False, False, True, False, False]
    told = rows[2]["reduced"]
    assert told["ranks"]
    assert rows[2]["parameters"] < rows[1]["parameters"]
    assert rows[4]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    factors = [f"{n.removesuffix('.weight')}.{i}.weight" for n in told["ranks"] for i in (0, 1)]
    assert set(factors) <= result.state.masks.keys()
    dense = [row for row in result.rows if row["arm"] == "dense"]
    assert all(row["reduced"] is None for row in dense)
    assert {row["parameters"] for row in dense} == {rows[0]["parameters"]}
    for path in (tmp_path, tmp_path / "model"):
        assert same(state_of(load(path)), result.state.weights)


@pytest.mark.slow
def test_a_schedule_that_asks_for_less_than_is_gone_already_takes_nothing():
    keys = {"reduce": ["low-rank"], "rank_budget": 0.3, "score_steps": 2, "reduce_round": 3}
    result = federate(tiny(rounds=4, warmup=1, end=4, sparsity=0.2, **keys))
    rows = result.rows
    assert not any(row["failures"] for row in rows)
    assert rows[1]["sparsity"] < 0.2 < rows[2]["sparsity"] == rows[3]["sparsity"]
    assert result.summary["reached"]
