"""Many candidates in one question, and how much of a change is kept: chosen on validation only."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedprune import Shard
from fedprune.client.answers import answer
from fedprune.client.host import Host
from fedprune.client.measurement import LOST
from fedprune.engines.inline import inline_port
from fedprune.learning.candidates import HERE, Candidate, blended, without
from fedprune.privacy.release import Release
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.server_noise import noised_sum
from fedprune.tensors.models import load_into
from fedprune.tensors.named import Tensors
from tests.runs import overheard, played, tiny

EVERYONE = range(5)
CANDIDATES = (HERE, Candidate(1.0), Candidate(2.0), Candidate(apart={"hidden.weight": 1.0}))


def ladder_of(about: Question) -> Tensors:
    gen = torch.Generator().manual_seed(0)
    drawn = {n: torch.randint(0, 3, m.shape, generator=gen) for n, m in about.masks.items()}
    return {n: (r * about.masks[n]).to(torch.uint8) for n, r in drawn.items()}


def noise_on(about: Question) -> Tensors:
    gen = torch.Generator().manual_seed(1)
    back = {n: 0.01 * torch.randn(w.shape, generator=gen) for n, w in about.weights.items()}
    return {n: b * about.masks[n] if n in about.masks else b.abs() for n, b in back.items()}


def asked(about: Question, **way: Any) -> Question:
    shared = {"part": "validation", "candidates": CANDIDATES}
    return Question("compare", 4, about.weights, about.masks, **shared, **way)


@torch.no_grad()
def by_hand(host: Host, weights: Tensors) -> tuple[float, int, int]:
    """Loss and correct of a model on the validation parts of everyone, at once."""
    load_into(host.model, weights)
    host.model.eval()
    parts = [host.shards[p].validation for p in EVERYONE]
    pooled = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
    loss = host.task.loss(host.model, pooled)
    return loss.total.item(), loss.correct, loss.count


@pytest.mark.parametrize("way", ["rungs", "given"])
def test_the_loss_of_a_candidate_is_the_pooled_one(way, cnn):
    host, about = cnn
    lies = {"rungs": ladder_of(about), "given": noise_on(about)}[way]
    aggregate = inline_port(host).ask(asked(about, **{way: lies}), EVERYONE)
    assert aggregate.failures == ()
    for i, candidate in enumerate(CANDIDATES):
        if way == "rungs":
            weights = without(about.weights, lies, candidate)
        else:
            weights = blended(about.weights, lies, candidate, host.layout)
        loss, correct, count = by_hand(host, weights)
        assert aggregate.totals[f"loss_{i}"] == pytest.approx(loss, rel=1e-5)
        assert (aggregate.totals[f"correct_{i}"], aggregate.totals["count"]) == (correct, count)
    losses = {aggregate.totals[f"loss_{i}"] for i in range(len(CANDIDATES))}
    assert len(losses) == len(CANDIDATES)


def test_a_candidate_whose_loss_is_no_number_loses_and_spoils_nothing(cnn):
    host, about = cnn
    far = {n: torch.full_like(w, 3e38) for n, w in noise_on(about).items()}
    aggregate = inline_port(host).ask(asked(about, given=far), EVERYONE)
    assert aggregate.failures == ()
    assert aggregate.totals["loss_1"] == pytest.approx(len(EVERYONE) * LOST)
    assert aggregate.totals["loss_0"] < 1e6


def test_a_model_that_measures_nothing_itself_is_the_clients_failure(cnn):
    host, about = cnn
    weights = {n: torch.full_like(w, float("nan")) for n, w in about.weights.items()}
    question = replace(asked(about, rungs=ladder_of(about)), weights=weights)
    aggregate = inline_port(host).ask(question, [0])
    assert [(f.phase, f.field) for f in aggregate.failures] == [("compare", "loss_0")]


def three(**keys):
    """Three rounds, the last two prune."""
    return tiny(**{"rounds": 3, "warmup": 1, "end": 3, **keys})


def run(without=None, **keys):
    """The result, every exchange, every state."""
    return overheard(three(**keys), without)


GRIDS = [("global", (0.5, 1.0, 1.5)), ("layer", (0.5, 1.0, 1.5)), ("layer", (0.9, 1.0))]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("blend", "grid"), GRIDS)
def test_what_is_kept_is_what_was_measured_and_no_worse_than_the_whole(blend, grid):
    result, exchanges, states = run(blend=blend, blend_grid=grid)
    assert {q.part for q, _, _ in exchanges if q.kind == "compare"} == {"validation"}
    for row, state in zip(result.rows, states, strict=True):
        told = row["blend"]
        assert row["loss"] == told["loss"] <= told["plain"], "the same model, bit for bit"
        assert set(told["shares"].values()) <= set(grid)
        assert told["tried"][0] == [1.0, told["plain"]] or blend == "layer"
        assert all(not state.weights[n][~m].any() for n, m in state.masks.items())
    assert any(row["blend"]["loss"] < row["blend"]["plain"] for row in result.rows)


@pytest.mark.slow
def test_the_whole_change_is_no_blending_bit_for_bit():
    kept, plain = played(three(blend="global", blend_grid=(1.0, 0.0))), played(three())
    assert all(set(row["blend"]["shares"].values()) == {1.0} for row in kept.rows)
    for name in ("weights_digest", "mask_digest", "loss"):
        assert [r[name] for r in kept.rows] == [r[name] for r in plain.rows]
    assert kept.summary["bytes_up"] > plain.summary["bytes_up"], "what it costs is counted"


@pytest.mark.slow
def test_with_too_few_answers_the_whole_change_is_kept_and_said():
    few, blending = {"min_clients": 3, "cohort": 3}, {"blend": "layer", "blend_grid": (1.0, 1.5)}
    kept, _, _ = run(lambda q, p: q.kind == "compare" and p > 1, **blending, **few)
    plain = played(three(**few))
    assert [r["blend"] for r in kept.rows] == [{"action": "too few answered"}] * 3
    assert kept.summary["weights_digest"] == plain.summary["weights_digest"]


def test_a_void_round_has_no_change_to_blend():
    result, exchanges, _ = run(
        lambda q, _: q.kind == "tune" and q.round == 2, blend="global", blend_grid=(1.0, 1.5)
    )
    assert [r["blend"] is None for r in result.rows] == [False, True, False]
    assert [q.round for q, _, _ in exchanges if q.kind == "compare"] == [1, 3]


@pytest.mark.slow
def test_a_client_that_fails_to_compare_is_as_one_never_asked(monkeypatch):
    keys = {"blend": "layer", "blend_grid": (1.0, 1.5)}
    spared, _, _ = run(lambda q, p: q.kind == "compare" and p == 1, **keys)

    def broken(question, client):
        if question.kind == "compare" and client.partition == 1:
            raise RuntimeError("no")
        return answer(question, client)

    monkeypatch.setattr("fedprune.client.partition_answers.answer", broken)
    failed, _, _ = run(**keys)
    assert {f["phase"] for r in failed.rows for f in r["failures"]} == {"compare"}
    for name in ("weights_digest", "loss", "blend"):
        assert [r[name] for r in failed.rows] == [r[name] for r in spared.rows]


def test_candidates_are_measured_under_any_split_alike(cnn):
    """In any order, and the same examples on one client: the same sums."""
    host, about = cnn
    parts = [host.shards[p].validation for p in EVERYONE]
    pooled = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
    one = replace(host, shards={0: Shard(pooled, pooled, pooled)})
    question = asked(about, rungs=ladder_of(about))
    here, there = inline_port(host).ask(question, EVERYONE), inline_port(one).ask(question, [0])
    assert here.totals == inline_port(host).ask(question, EVERYONE[::-1]).totals
    assert here.totals == pytest.approx(there.totals, rel=1e-6)


def test_noise_may_put_a_candidates_loss_below_zero_and_the_order_stays(monkeypatch):
    noise = torch.tensor([-9.0, -12.0, -9.0], dtype=torch.float64)
    monkeypatch.setattr("fedprune.protocol.server_noise.gaussian", lambda *_: noise)
    config = tiny(dp="client", dp_noise=1.0, rounds=1, warmup=0, end=1)
    fields = ("totals.loss_0", "totals.loss_1", "totals.loss")
    about = ("metrics", fields, "up", "client", "gaussian")
    release = Release(*about, clip=1.0, sensitivity=1.0, z=1.0)
    sums = Aggregate(totals={"loss_0": 4.0, "loss_1": 4.0, "loss": 4.0})
    question = Question("compare", 1, {}, {})
    found = noised_sum(sums, question, None, config, [release], None).totals
    assert found == {"loss_0": -5.0, "loss_1": -8.0, "loss": 0.0, "count": 5.0}
