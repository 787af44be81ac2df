"""How the server decides a mask from what came, and what it does when something did not come."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune import SCORES, Result, RunConfig, federate, select
from fedprune.client.host import Host
from fedprune.codec.coded_file import CODED_NAME
from fedprune.engines.inline import inline_port
from fedprune.methods.global_mask import decide, sparsity_of
from fedprune.methods.own_masks import under_one_mask
from fedprune.methods.scored import check_seen
from fedprune.options.refusal import ConfigError
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.scores.inputs import rows_of
from fedprune.scores.score import Evidence, Score
from fedprune.selection.regrowth import exchange_weights
from fedprune.selection.schedules import exchange_fraction
from fedprune.server.ask import conversed
from fedprune.server.diagnostics import agreement_of
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.state import Book, Model, State
from fedprune.structure.layout import Layout
from fedprune.tensors.named import (
    Masks,
    Tensors,
    count_kept,
    full_masks,
    gathered,
    masked,
    scattered,
)
from tests.runs import Asked, house_of, overheard, same, tiny

Heard = tuple[Result, Asked, list[State]]

PRUNABLE = 12_944
GONE = math.floor(0.7 * PRUNABLE + 0.5)
SIZES = {"clients": 4, "cohort": 4, "rounds": 3, "warmup": 1, "end": 3, "local_steps": 1}
"""Three rounds on four clients, the last two prune."""


def run(without: Callable[[Question, int], bool] | None = None, **keys: Any) -> Heard:
    return overheard(tiny(**{**SIZES, **keys}), without)


def dense(about: Question) -> Model:
    """Everything kept, with weights that are 0 where the fixture is pruned."""
    return Model(dict(about.weights), {n: torch.ones_like(m) for n, m in about.masks.items()})


def noise(seed: int, clients: int = 1) -> Tensor:
    return torch.randn(clients, PRUNABLE, generator=torch.Generator().manual_seed(seed)).double()


def spread_like(masks: Masks, flat: Tensor) -> Tensors:
    """Flat values by name: in the order of names, as all flat buffers are."""
    return scattered(flat, {n: m.shape for n, m in masks.items()}, full_masks(masks, masks))


def sizes_of(model: Model) -> Tensors:
    return {n: model.weights[n].abs() for n in model.masks}


def chosen(model: Model, flat: Tensor, **how: Any) -> Masks:
    """The mask that `select` makes of these scores."""
    named = spread_like(model.masks, flat)
    scores = {n: named[n] for n in model.masks}
    return select(scores, 0.7, alive=model.masks, magnitude=sizes_of(model), **how)


def decided(host: Host, model: Model, config: RunConfig, came: Aggregate, sums: Tensors) -> Model:
    """What becomes of the model when this came in a round that prunes 70 %."""
    weights, gen = {n: model.weights[n] for n in model.masks}, torch.Generator()
    evidence = Evidence(sums, 7.0, weights, model.masks, host.layout, gen)
    return decide(model, Round(5, Plan(config, host.layout, (0, 0))), came, evidence, 0.7)()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_pooled_score_decides(scope, cnn):
    host, model, flat = cnn[0], dense(cnn[1]), noise(1)[0]
    sums, came = spread_like(model.masks, flat), Aggregate(answered=(0,))
    after = decided(host, model, tiny(scope=scope), came, sums)
    assert same(after.masks, chosen(model, flat.abs() / 7.0, scope=scope))
    assert same(after.weights, masked(model.weights, after.masks))


ONE_BY_ONE = {
    "median": lambda rows: rows.quantile(0.5, dim=0),
    "trimmed-mean": lambda rows: rows.sort(0).values[1:-1].mean(0),
    "mean": lambda rows: rows.mean(0),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_clients_own_scores_decide(name, cnn):
    host, model, rows = cnn[0], dense(cnn[1]), noise(2, clients=5)
    config = tiny(combine=name, **({"trim": 0.2} if name == "trimmed-mean" else {}))
    came = Aggregate(rows.sum(0), 5.0, {"count": 5.0}, answered=tuple(range(5)), singles=rows)
    after = decided(host, model, config, came, {})
    assert same(after.masks, chosen(model, ONE_BY_ONE[name](rows)))


def test_votes_decide_and_magnitude_breaks_their_ties(cnn):
    host, model = cnn[0], dense(cnn[1])
    votes = torch.randint(0, 4, (PRUNABLE,), generator=torch.Generator().manual_seed(4))
    came = Aggregate(torch.empty(0), 3.0, {"count": 3.0}, votes, answered=(0, 1, 2))
    after = decided(host, model, tiny(combine="votes"), came, {})
    assert same(after.masks, chosen(model, votes.double()))
    stay, size = (gathered(t, model.masks) for t in (after.masks, sizes_of(model)))
    assert int(votes[~stay].max()) == int(votes[stay].min()) == 2, "some of the tied go"
    assert size[(votes == 2) & stay].min() >= size[(votes == 2) & ~stay].max()


@pytest.mark.parametrize("rule", ["union", "intersection"])
def test_clients_masks_become_one_mask_of_the_same_size(rule, cnn):
    host, model = cnn[0], dense(cnn[1])
    each = [gathered(chosen(model, noise(seed)[0]), model.masks) for seed in range(3)]
    votes, r = torch.stack(each).sum(0), Round(5, Plan(tiny(masks=rule), host.layout, (0, 0)))
    talk = under_one_mask(model, None, r, Aggregate(votes=votes, answered=(0, 1, 2)))
    after = conversed(talk, Book(), r.plan, inline_port(host))[0].model
    assert count_kept(after.masks) == PRUNABLE - GONE
    size, stay = (gathered(t, model.masks) for t in (sizes_of(model), after.masks))
    key = votes.double() if rule == "intersection" else torch.where(votes > 0, size, -1.0)
    assert same(after.masks, chosen(model, key))
    if rule == "intersection":
        assert int(votes[stay].min()) >= 1
        assert (votes[~stay] < 3).all(), "what all kept stays"


def test_agreement_by_hand():
    """Three clients with two votes each on four weights: pairs share 1, 1 and 0 of 2."""
    votes = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]).sum(0)
    found = agreement_of(Aggregate(votes=votes, answered=(0, 1, 2)))
    assert found == pytest.approx((1 + 1 + 0) / 6)


def test_sparsity_is_of_all_that_is_prunable():
    masks = {"a": torch.tensor([True, False]), "b": torch.zeros(2, 3, dtype=torch.bool)}
    layout = Layout({n: m.shape for n, m in masks.items()}, ("a", "b"), (), {})
    assert sparsity_of(masks, layout) == 7 / 8
    # Of a model that was cut the dense one counts.
    assert sparsity_of(masks, replace(layout, dense=10)) == 9 / 10


@pytest.mark.slow
def test_an_exchange_drops_by_score_and_grows_by_gradient():
    """The third round's mask, from what the port gave back."""
    result, asked, states = run(schedule="regrow", regrow=0.5)
    before, after = states[1], states[2]
    scored = [(q, f) for q, _, f in asked if q.kind == "score" and q.round == 3]
    (drop, dropped), (grow, grown) = scored
    assert (drop.dense, grow.dense, grow.score) == (False, True, "gradient")
    shapes = {n: m.shape for n, m in before.masks.items()}
    found = scattered(dropped.total.abs() / dropped.totals["count"], shapes, before.masks)
    gains = spread_like(before.masks, grown.total.abs())
    sizes = {n: before.weights[n].abs() for n in before.masks}
    scores, gains = ({n: t[n] for n in sizes} for t in (found, gains))
    fraction = exchange_fraction(0.5, 1, 2)
    expected = exchange_weights(before.masks, scores, gains, fraction, magnitude=sizes)
    assert same(after.masks, expected)
    moved = sum(int((m & ~before.masks[n]).sum()) for n, m in after.masks.items())
    assert 0 < moved == result.rows[2]["exchanged"]
    assert result.rows[1]["exchanged"] is None
    tuned = next(q for q, _, _ in asked if q.kind == "tune" and q.round == 3)
    fresh = {n: m & ~before.masks[n] for n, m in after.masks.items()}
    assert all(not tuned.weights[n][m].any() for n, m in fresh.items()), "they begin at 0"


@pytest.mark.slow
def test_the_standard_error_of_an_estimate_is_told():
    result, _, _ = run(score="perturbation", probes=8)
    errors = [row["standard_error"] for row in result.rows]
    assert errors[0] is None
    assert all(0 < error < 100 for error in errors[1:])
    plain, _, _ = run()
    assert [row["standard_error"] for row in plain.rows] == [None] * 3


VICTIM = 1
WAYS: list[dict[str, Any]] = [
    {"combine": "median"},
    {"combine": "clipped-mean"},
    {"combine": "votes"},
    {"combine": "rank-mean"},
    {"combine": "mean", "normalise": "l1"},
    {"masks": "union"},
    {"masks": "intersection", "average": "fedavg"},
    {"score_during": "tune"},
    {"score_steps": 2},
    {"score_wire": "log8"},
    {"schedule": "regrow"},
    {"rewind": 1},
    {"calibration": "sequential", "scope": "layer"},
    {"target_bytes": 20_000, "sparsity": None},
    {"score": "wanda"},
    {"score": "sparsegpt"},
    {"accumulate": 2, "precision": "bf16"},
]


def bad_shard(host: Host) -> Host:
    """A host where one client's own data make its answers fail: there are no such labels."""
    shard = host.shards[VICTIM]
    parts = {key: {**part, "labels": part["labels"] * 0 + 99} for key, part in vars(shard).items()}
    return replace(host, shards={**host.shards, VICTIM: replace(shard, **parts)})


@pytest.mark.sampled(5)
@pytest.mark.parametrize("keys", WAYS, ids=str)
def test_a_failing_client_leaves_the_bits_of_one_never_asked(keys):
    spared, _, _ = run(lambda _question, partition: partition == VICTIM, **keys)
    config = tiny(**{**SIZES, **keys})
    failed = federate(config, inline_port(bad_shard(house_of(config))))
    named = [f for row in failed.rows for f in row["failures"]]
    assert {f["partition"] for f in named} == {VICTIM}
    assert len(named) >= 6
    for ours, theirs in zip(failed.rows, spared.rows, strict=True):
        told = {key for key in ours if key != "failures" and not key.startswith("bytes_")}
        assert {key: ours[key] for key in told} == {key: theirs[key] for key in told}
    assert failed.summary["quality"] == spared.summary["quality"]


LATE: list[dict[str, Any]] = [
    {},
    {"combine": "median"},
    {"combine": "votes"},
    {"masks": "union"},
    {"score_during": "tune"},
    {"score_steps": 2},
    {"rewind": 1},
    {"calibration": "sequential", "scope": "layer"},
    {"score": "wanda", "score_wire": "fp16"},
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("keys", LATE, ids=str)
def test_a_pruning_that_too_few_answered_is_made_up_for(keys):
    """Everything at once in round 2, which only one client answers; round 3 does it."""

    def silent(question: Question, partition: int) -> bool:
        return question.round == 2 and question.kind in {"score", "tune"} and partition > 0

    once = {"schedule": "one-shot", "end": 2, "min_clients": 2}
    result, _, states = run(silent, **once, **keys)
    assert [state.pending for state in states] == [False, True, False]
    assert [row["removed"] for row in result.rows] == [0, 0, GONE]
    assert result.summary["reached"]
    never, _, ends = run(lambda q, p: q.round > 1 and p > 0, **once, **keys)
    assert ends[-1].pending
    assert not never.summary["reached"]
    assert never.summary["sparsity"] == 0.0


@pytest.mark.slow
def test_an_exchange_that_too_few_answered_changes_no_mask():
    def silent(question: Question, partition: int) -> bool:
        return question.round == 3 and question.dense and partition > 0

    result, _, states = run(silent, schedule="regrow", min_clients=2)
    assert same(states[1].masks, states[2].masks)
    assert (states[2].pending, result.rows[2]["exchanged"]) == (True, None)


@pytest.mark.slow
@pytest.mark.parametrize("target", [16_000, 25_000])
def test_the_file_on_disk_is_as_small_as_was_asked(target, tmp_path):
    config = tiny(target_bytes=target, sparsity=None, local_steps=1)
    result = federate(config, inline_port(house_of(config)), folder=tmp_path / "run")
    removed = [row["removed"] for row in result.rows]
    assert 0 == removed[1] < removed[2] < removed[3] == removed[4]
    assert result.summary["sparsity_asked"] is None
    size = (tmp_path / "run" / CODED_NAME).stat().st_size
    assert target - 400 < size <= target, "and no smaller than it had to be"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"target_bytes": 3_000}, r"^target-bytes=3000: .*; allowed: from \d+$"),
        ({"target_flops": 0.0001}, r"^target-flops=0.0001: .*; allowed: from 0\.\d+$"),
    ],
)
def test_a_target_that_cannot_be_is_refused_with_what_can(keys, line):
    with pytest.raises(ValueError, match=line):
        run(**keys, sparsity=None)


@pytest.mark.slow
def test_a_score_that_sets_weights_sets_them():
    """SparseGPT: the survivors make up for what went."""
    result, asked, _ = run(score="sparsegpt")
    scored = next(q for q, _, _ in asked if q.kind == "score")
    tuned = next(q for q, _, _ in asked if q.kind == "tune" and q.round == scored.round)
    for name, mask in tuned.masks.items():
        assert not tuned.weights[name][~mask].any()
        assert (tuned.weights[name] != scored.weights[name])[mask].any()
    assert result.summary["failures"] == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["random", "magnitude", "synflow"])
def test_a_score_that_asks_nobody_asks_nobody(name):
    result, asked, states = run(score=name)
    assert not SCORES[name].asks
    assert "score" not in {q.kind for q, _, _ in asked}
    assert [row["agreement"] for row in result.rows] == [None] * 3
    assert [row["removed"] for row in result.rows][-1] == GONE
    if name == "magnitude":
        assert same(states[1].masks, select(sizes_of(states[0].model), 0.7 * 7 / 8))


@pytest.mark.slow
def test_clients_own_masks_are_as_far_as_the_schedule():
    """Caps fall on the way: votes at the final cap would be refused, and void good statistics."""
    result, asked, _ = run(max_density=0.35, sparsity=0.7, rounds=6, end=5)
    scored = [q for q, _, _ in asked if q.kind == "score"]
    assert [q.progress for q in scored] == sorted(q.progress for q in scored)
    assert scored[0].progress < 1.0 == scored[-1].progress
    assert result.summary["failures"] == 0


@pytest.mark.slow
def test_only_the_last_of_a_rounds_prunings_goes_back():
    """Every step scores trained weights; survivors are rewound once."""
    _, asked, _ = run(rewind=0, score_steps=3)
    first, scored = asked[0][0], [q for q, *_ in asked if q.kind == "score" and q.round == 2]
    assert len(scored) == 3
    name = next(iter(scored[0].masks))
    last = scored[-1].masks[name]
    assert torch.equal(scored[-1].weights[name][last], scored[0].weights[name][last])
    assert not torch.equal(scored[-1].weights[name][last], first.weights[name][last])


@pytest.mark.parametrize(
    ("made", "line"),
    [(lambda w: w * torch.nan, "NaN"), (lambda w: w.flatten(), "same name and shape")],
    ids=["nan", "shape"],
)
def test_what_a_score_makes_must_be_scores(made, line, monkeypatch):
    mine = Score("mine", "here", lambda e: {name: made(w) for name, w in e.weights.items()})
    monkeypatch.setitem(SCORES, "mine", mine)
    with pytest.raises(ConfigError, match=rf"^score='mine': .*{line}"):
        run(score="mine")


def test_numbers_of_rows_with_noise_say_of_no_layer_that_it_was_not_seen():
    evidence: Any = SimpleNamespace(sums={rows_of("w"): torch.zeros(1)})
    with pytest.raises(ConfigError, match="no row went through the layer of w"):
        check_seen(evidence, tiny(model="mlp", score="wanda"))
    check_seen(evidence, tiny(model="mlp", score="wanda", dp="example", dp_noise=1.0))
