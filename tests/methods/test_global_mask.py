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
from fedprune.structure.groups import stages_of
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Tensors, count_kept, gathered, masked
from tests.runs import Asked, house_of, overheard, tiny

PRUNABLE = 12_944
GONE = math.floor(0.7 * PRUNABLE + 0.5)
Heard = tuple[Result, Asked, list[State]]


def run(without: Callable[[Question, int], bool] | None = None, **keys: Any) -> Heard:
    """Three rounds on four clients, the last two prune."""
    sizes = {"clients": 4, "cohort": 4, "rounds": 3, "warmup": 1, "end": 3, "local_steps": 1}
    return overheard(tiny(**{**sizes, **keys}), without)


def round_of(host: Host, config: RunConfig) -> Round:
    return Round(5, Plan(config, host.layout, (0, 0)))


def dense(about: Question) -> Model:
    """Everything kept, with weights that are 0 where the fixture is pruned."""
    full = {n: torch.ones_like(m) for n, m in about.masks.items()}
    return Model(dict(about.weights), full)


def noise(about: Question, seed: int, clients: int = 1) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    flat = torch.randn(clients, PRUNABLE, generator=gen)
    assert sum(m.numel() for m in about.masks.values()) == PRUNABLE
    return flat


def evidence_of(host: Host, model: Model, sums: dict[str, Tensor], count: float) -> Evidence:
    weights = {n: model.weights[n] for n in model.masks}
    gen = torch.Generator().manual_seed(0)
    return Evidence(sums, count, weights, model.masks, host.layout, gen)


def spread_like(model: Model, flat: Tensor) -> dict[str, Tensor]:
    """Flat values by name: in the order of names, as all flat buffers are."""
    assert torch.equal(gathered(model.masks, model.masks), torch.ones(PRUNABLE, dtype=torch.bool))
    names = sorted(model.masks)
    pieces = flat.split([model.masks[n].numel() for n in names])
    return {n: p.reshape(model.masks[n].shape) for n, p in zip(names, pieces, strict=True)}


def chosen(model: Model, flat: Tensor, **how: Any) -> dict[str, Tensor]:
    """The mask that `select` makes of these scores."""
    sizes = {n: model.weights[n].abs() for n in model.masks}
    scores = {n: spread_like(model, flat)[n] for n in model.masks}
    return select(scores, 0.7, alive=model.masks, magnitude=sizes, **how)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_pooled_score_decides(scope, cnn):
    host, about = cnn
    model = dense(about)
    flat = noise(about, 1)[0].double()
    sums = spread_like(model, flat)
    r = round_of(host, tiny(scope=scope))
    evidence = evidence_of(host, model, sums, 7.0)
    after = decide(model, r, Aggregate(answered=(0,)), evidence, 0.7)()
    assert equal(after.masks, chosen(model, flat.abs() / 7.0, scope=scope))
    assert all(not after.weights[n][~m].any() for n, m in after.masks.items())
    assert equal({n: w for n, w in after.weights.items() if n not in after.masks},
                 {n: w for n, w in model.weights.items() if n not in model.masks})  # fmt: skip


ONE_BY_ONE = {
    "median": lambda rows: rows.double().quantile(0.5, dim=0),
    "trimmed-mean": lambda rows: rows.double().sort(0).values[1:-1].mean(0),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_clients_scores_one_by_one_decide(name, cnn):
    host, about = cnn
    model = dense(about)
    rows = noise(about, 2, clients=5)
    keys = {"trim": 0.2} if name == "trimmed-mean" else {}
    r = round_of(host, tiny(combine=name, **keys))
    aggregate = Aggregate(rows.sum(0).double(), 5.0, {"count": 5.0}, answered=tuple(range(5)))
    evidence = evidence_of(host, model, {}, 5.0)
    after = decide(model, r, replace(aggregate, singles=rows), evidence, 0.7)()
    assert equal(after.masks, chosen(model, ONE_BY_ONE[name](rows)))


def test_the_mean_of_clients_scores_decides(cnn):
    host, about = cnn
    model = dense(about)
    flat = noise(about, 3)[0].double()
    aggregate = Aggregate(flat * 12.0, 12.0, {"count": 12.0}, answered=(0, 1))
    evidence = evidence_of(host, model, {}, 12.0)
    after = decide(model, round_of(host, tiny(combine="mean")), aggregate, evidence, 0.7)()
    assert equal(after.masks, chosen(model, flat))


def test_votes_decide_and_magnitude_breaks_their_ties(cnn):
    host, about = cnn
    model = dense(about)
    votes = torch.randint(0, 4, (PRUNABLE,), generator=torch.Generator().manual_seed(4))
    aggregate = Aggregate(torch.empty(0), 3.0, {"count": 3.0}, votes, answered=(0, 1, 2))
    evidence = evidence_of(host, model, {}, 3.0)
    after = decide(model, round_of(host, tiny(combine="votes")), aggregate, evidence, 0.7)()
    assert equal(after.masks, chosen(model, votes.double()))
    stay = gathered(after.masks, model.masks)
    assert int(votes[~stay].max()) == int(votes[stay].min()) == 2, "some of the tied go"
    size = gathered({n: w.abs() for n, w in model.weights.items() if n in model.masks}, model.masks)
    assert size[(votes == 2) & stay].min() >= size[(votes == 2) & ~stay].max()


@pytest.mark.parametrize("rule", ["union", "intersection"])
def test_clients_masks_become_one_mask_of_the_same_size(rule, cnn):
    host, about = cnn
    model = dense(about)
    each = [
        gathered(chosen(model, noise(about, seed)[0].double()), model.masks) for seed in range(3)
    ]
    votes = torch.stack(each).sum(0)
    r = round_of(host, tiny(masks=rule))
    talk = under_one_mask(model, None, r, Aggregate(votes=votes, answered=(0, 1, 2)))
    after = conversed(talk, Book(), r.plan, inline_port(host))[0].model
    assert count_kept(after.masks) == PRUNABLE - GONE
    size = gathered({n: w.abs() for n, w in model.weights.items() if n in model.masks}, model.masks)
    key = votes.double() if rule == "intersection" else torch.where(votes > 0, size, -1.0)
    assert equal(after.masks, chosen(model, key))
    if rule == "intersection":
        assert int(votes[gathered(after.masks, model.masks)].min()) >= 1
        assert (votes[~gathered(after.masks, model.masks)] < 3).all(), "what all kept stays"


def test_agreement_by_hand():
    """Three clients with two votes each on four weights: pairs share 1, 1 and 0 of 2."""
    votes = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]).sum(0)
    assert agreement_of(Aggregate(votes=votes, answered=(0, 1, 2))) == pytest.approx(
        (1 + 1 + 0) / 6
    )


def test_sparsity_is_of_all_that_is_prunable():
    masks = {"a": torch.tensor([True, False]), "b": torch.zeros(2, 3, dtype=torch.bool)}
    layout = Layout({n: m.shape for n, m in masks.items()}, ("a", "b"), (), {})
    assert sparsity_of(masks, layout) == 7 / 8
    # Of a model that was cut the dense one counts.
    assert sparsity_of(masks, replace(layout, dense=10)) == 9 / 10


def test_stages_are_the_tensors_in_model_order(cnn):
    host, _ = cnn
    assert stages_of(host.layout) == [(name,) for name in host.layout.prunable]


@pytest.mark.slow
def test_an_exchange_drops_by_score_and_grows_by_gradient():
    """The third round's mask, from what the port gave back."""
    result, asked, states = run(schedule="regrow", regrow=0.5)
    before, after = states[1], states[2]
    scored = [(q, f) for q, _, f in asked if q.kind == "score" and q.round == 3]
    (drop, dropped), (grow, grown) = scored
    assert (drop.dense, grow.dense, grow.score) == (False, True, "gradient")
    assert dropped.total is not None
    assert grown.total is not None
    names = sorted(before.masks)
    flat = torch.zeros(PRUNABLE, dtype=torch.float64)
    alive = torch.cat([before.masks[n].flatten() for n in names])
    flat[alive] = dropped.total
    full = Model(before.weights, {n: m | True for n, m in before.masks.items()})
    scores, gains = spread_like(full, flat.abs()), spread_like(full, grown.total.abs())
    expected = exchange_weights(
        before.masks,
        {n: scores[n] / dropped.totals["count"] for n in before.masks},
        {n: gains[n] for n in before.masks},
        exchange_fraction(0.5, 1, 2),
        magnitude={n: before.weights[n].abs() for n in before.masks},
    )
    assert equal(after.masks, expected)
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
    parts = {
        key: {**part, "labels": torch.full_like(part["labels"], 99)}
        for key, part in vars(shard).items()
    }
    return replace(host, shards={**host.shards, VICTIM: replace(shard, **parts)})


@pytest.mark.sampled(5)
@pytest.mark.parametrize("keys", WAYS, ids=str)
def test_a_failing_client_leaves_the_bits_of_one_never_asked(keys):
    spared, _, _ = run(lambda _question, partition: partition == VICTIM, **keys)
    sizes = {"clients": 4, "cohort": 4, "rounds": 3, "warmup": 1, "end": 3, "local_steps": 1}
    config = tiny(**{**sizes, **keys})
    failed = federate(config, inline_port(bad_shard(house_of(config))))
    named = [f for row in failed.rows for f in row["failures"]]
    assert {f["partition"] for f in named} == {VICTIM}
    assert len(named) >= 6
    for ours, theirs in zip(failed.rows, spared.rows, strict=True):
        for key in ours.keys() - {"failures", "bytes_up", "bytes_down", "bytes_evaluation"}:
            if key != "bytes_dense":
                assert ours[key] == theirs[key], key
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
    assert equal(states[1].masks, states[2].masks)
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


TOO_SMALL = [
    ({"target_bytes": 3_000}, r"^target-bytes=3000: what stays weighs more; allowed: from \d+$"),
    ({"target_flops": 0.0001}, r"^target-flops=0.0001: what stays .*; allowed: from 0\.\d+$"),
]


@pytest.mark.parametrize(("keys", "line"), TOO_SMALL)
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
        moved = (tuned.weights[name] != scored.weights[name]) & mask
        assert moved.any()
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
        start = masked(states[0].weights, {})
        sizes = {n: start[n].abs() for n in states[0].masks}
        assert equal(states[1].masks, select(sizes, 0.7 * 7 / 8))


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
    first = next(q for q, _, _ in asked)
    by_round: dict[int, list[Question]] = {}
    for question, _, _ in asked:
        if question.kind == "score":
            by_round.setdefault(question.round, []).append(question)
    scored = by_round[min(by_round)]
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
    def finalise(evidence: Evidence) -> Tensors:
        return {name: made(w) for name, w in evidence.weights.items()}

    monkeypatch.setitem(SCORES, "mine", Score("mine", "here", finalise))
    with pytest.raises(ConfigError, match=rf"^score='mine': .*{line}"):
        run(score="mine")


def test_numbers_of_rows_with_noise_say_of_no_layer_that_it_was_not_seen():
    evidence: Any = SimpleNamespace(sums={rows_of("w"): torch.zeros(1)})
    with pytest.raises(ConfigError, match="no row went through the layer of w"):
        check_seen(evidence, tiny(model="mlp", score="wanda"))
    check_seen(evidence, tiny(model="mlp", score="wanda", dp="example", dp_noise=1.0))
