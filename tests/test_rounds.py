import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout

from fedprune import SCORES, NoRoundCompleted, Result, Shard, federate, select
from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.client.host import Host, grouped, labels_of
from fedprune.codec.masks import encode_mask, mask_digest
from fedprune.config.kinds import KINDS
from fedprune.engines.inline import inline_port
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import broadcast, decode_question, encode_question
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.scores.score import Probe
from fedprune.server.diagnostics import agreement_of
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.task import batches
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, count_kept, digest, masked
from tests.runs import Spy, house_of, overheard, played, tiny

PRUNABLE = 12_944
DIGESTS = ("weights_digest", "mask_digest")


def column(result: Result, name: str, arm: str = "pruned") -> list[Any]:
    return [row[name] for row in result.rows if row["arm"] == arm]


# How much of the final sparsity is in force after rounds 1 to 5, pruning in rounds 3 and 4.
FRACTIONS = {"one-shot": [0, 0, 1, 1, 1], "linear": [0, 0, 0.5, 1, 1], "cubic": [0, 0, 7 / 8, 1, 1]}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.33333, 0.9])
@pytest.mark.parametrize("schedule", FRACTIONS)
def test_every_round_removes_exactly_what_the_schedule_says(schedule, sparsity, scope):
    end = 3 if schedule == "one-shot" else 4
    config = tiny(schedule=schedule, sparsity=sparsity, scope=scope, local_steps=1, end=end)
    result = played(config)
    expected = [math.floor(f * sparsity * PRUNABLE + 0.5) for f in FRACTIONS[schedule]]
    assert column(result, "removed") == expected
    assert column(result, "sparsity") == [k / PRUNABLE for k in expected]
    assert count_kept(result.state.masks) == PRUNABLE - expected[-1]
    if scope == "layer":
        for name, mask in result.state.masks.items():
            gone = mask.numel() - int(mask.sum())
            assert abs(gone - sparsity * mask.numel()) < 1, name


@pytest.mark.slow
def test_pruning_every_other_round_ends_at_the_same_count():
    config = tiny(warmup=0, rounds=6, end=5, frequency=2, local_steps=1, schedule="linear")
    shares = [math.floor(0.7 * f * PRUNABLE + 0.5) for f in (1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1)]
    assert column(played(config), "removed") == shares


def test_phases_cohorts_and_digests_of_a_run():
    result = played(tiny())
    assert column(result, "phase") == ["warmup", "warmup", "prune", "prune", "recover"]
    assert column(result, "answered") == [3] * 5
    assert all(len(set(cohort)) == 3 for cohort in column(result, "cohort"))
    assert len({tuple(c) for c in column(result, "cohort")}) > 1
    assert column(result, "weights_digest")[-1] == digest(result.state.weights)
    assert column(result, "mask_digest")[-1] == mask_digest(result.state.masks)
    assert len(set(column(result, "weights_digest"))) == 5
    assert digest(state_of(result.model)) == digest(result.state.weights)
    summary = result.summary
    assert (summary["rounds_completed"], summary["failures"]) == (5, 0)
    assert summary["kept_parameters"] == PRUNABLE - math.floor(0.7 * PRUNABLE + 0.5)
    assert summary["parameters"] == sum(p.numel() for p in result.model.parameters())


@pytest.mark.slow
def test_a_removed_weight_is_zero_in_every_payload(monkeypatch):
    seen: list[str] = []

    def checked(question: Question, client: ClientContext) -> Answer:
        out = answer(question, client)
        for name, mask in question.masks.items():
            assert not client.model.get_parameter(name).detach()[~mask].any()
        assert out.values.numel() == form_of(question, client.config, client.layout).values
        seen.append(question.kind)
        return out

    monkeypatch.setattr("fedprune.client.partition_answers.answer", checked)
    result, asked, states = overheard(tiny(optimizer="adamw", weight_decay=0.1, proximal=0.01))
    assert result.summary["failures"] == 0
    assert {"score", "tune", "evaluate", "describe"} == set(seen)
    assert sum(count_kept(q.masks) < PRUNABLE for q, _, _ in asked) >= 6
    layout = inline_layout(result)
    for question, _, _ in asked:
        decoded = decode_question(encode_question(question, "fp32"), layout)
        if not KINDS[question.kind].weights:
            assert decoded.weights == {}, "what only counts needs no weights"
            continue
        for weights in (question.weights, decoded.weights):
            assert all(not weights[n][~m].any() for n, m in question.masks.items())
    for state in states:
        assert all(not state.weights[n][~m].any() for n, m in state.masks.items())


def inline_layout(result: Result) -> Layout:
    return layout_of(result.model, output=("head",))


def own_masks(host: Host, question: Question, cohort: Sequence[int]) -> list[Masks]:
    """Each client's own mask: its own score, the selection it would make alone."""
    masks = []
    for p in cohort:
        load_into(host.model, question.weights)
        host.model.eval()
        names = host.layout.prunable
        given = list(batches(host.shards[p].train, 10_000))
        loss = host.task.loss
        probe = Probe(host.model, host.layout, names, given, loss, question.masks)
        sums = SCORES["taylor"].asks[0].collect(probe)
        scores = {n: s.abs() for n, s in sums.items()}
        sizes = {n: question.weights[n].abs() for n in names}
        assert question.sparsity is not None
        masks.append(select(scores, question.sparsity, alive=question.masks, magnitude=sizes))
    return masks


@pytest.mark.slow
def test_agreement_is_the_mean_overlap_of_the_clients_own_masks():
    config = tiny()
    result, asked, _ = overheard(config)
    scored = [(q, cohort) for q, cohort, _ in asked if q.kind == "score"]
    agreements = [a for a in column(result, "agreement") if a is not None]
    assert len(scored) == len(agreements) == 2
    assert column(result, "agreement")[:2] == [None, None]
    for (question, cohort), agreement in zip(scored, agreements, strict=True):
        masks = own_masks(house_of(config), question, cohort)
        kept = count_kept(masks[0])
        overlaps = [
            sum(int((a[n] & b[n]).sum()) for n in a) / kept for a, b in combinations(masks, 2)
        ]
        assert agreement == pytest.approx(sum(overlaps) / len(overlaps), abs=2e-4)
        assert 0.3 < agreement < 0.99


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        (["1100", "1100", "1100"], 1.0),
        (["1100", "0011"], 0.0),
        (["1100", "1010"], 0.5),
        (["1100", "1010", "0110"], 0.5),
        (["1110", "0111", "1110"], (2 / 3 + 1.0 + 2 / 3) / 3),
        (["1111"], None),
        (["0000", "0000"], None),
    ],
)
def test_the_formula_of_agreement(masks, expected):
    votes = torch.tensor([[int(b) for b in mask] for mask in masks]).sum(0)
    aggregate = Aggregate(votes=votes, answered=tuple(range(len(masks))))
    assert agreement_of(aggregate) == (None if expected is None else pytest.approx(expected))
    assert agreement_of(replace(aggregate, votes=None)) is None


def test_without_agreement_nobody_votes_and_nothing_else_changes():
    voting, silent = played(tiny()), played(tiny(agreement=False))
    for name in DIGESTS:
        assert column(voting, name) == column(silent, name)
    assert column(silent, "agreement") == [None] * 5
    assert column(silent, "bytes_up")[-1] < column(voting, "bytes_up")[-1]


@pytest.mark.parametrize(("floor", "sparsity"), [(50, 0.99), (1, 0.9999), (13_000, 0.001)])
def test_floors_that_make_the_count_unreachable_are_refused_before_anything_starts(floor, sparsity):
    with pytest.raises(ValueError, match=rf"floor={floor}: .*sparsity={sparsity} .*allowed: "):
        house_of(tiny(floor=floor, sparsity=sparsity))


def test_floors_that_are_just_reachable_are_kept():
    """The first convolution has 144 weights: with a floor of 100 most of what it loses is fixed."""
    result = played(tiny(floor=100, sparsity=0.97, score="random"))
    assert min(int(mask.sum()) for mask in result.state.masks.values()) >= 100
    assert result.summary["kept_parameters"] == PRUNABLE - math.floor(0.97 * PRUNABLE + 0.5)


VICTIM = 1


def bad_shard(host: Host, how: str) -> Host:
    """A host where one partition's own data make its answers fail."""
    shard = host.shards[VICTIM]

    def spoilt(part: dict[str, Tensor]) -> dict[str, Tensor]:
        if how == "raises":
            return {**part, "labels": torch.full_like(part["labels"], 99)}
        return {**part, "images": torch.full_like(part["images"], float("nan"))}

    parts = {key: spoilt(getattr(shard, key)) for key in ("train", "validation", "test")}
    return replace(host, shards={**host.shards, VICTIM: replace(shard, **parts)})


FAILURES = {
    "raises": {("score", "", "IndexError"), ("tune", "", "IndexError"), ("evaluate", "", "Index")},
    "NaN": {
        ("score", "features.0.weight", "NaN or infinite"),
        ("tune", "loss", "nan is not finite"),
        ("evaluate", "loss", "nan is not finite"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("how", FAILURES)
def test_a_failing_client_is_named_and_leaves_the_bits_of_one_never_asked(how):
    config = tiny(cohort=4)
    failed = federate(config, inline_port(bad_shard(house_of(config), how)))
    spared, _, _ = overheard(config, lambda _question, partition: partition == VICTIM)
    named = [f for row in failed.rows for f in row["failures"]]
    assert {f["partition"] for f in named} == {VICTIM}
    for phase, field, reason in FAILURES[how]:
        found = [f for f in named if f["phase"] == phase]
        assert found, phase
        assert all(f["field"] == field and f["reason"].startswith(reason) for f in found)
    assert failed.summary["failures"] >= len(named) > 8
    assert sum(VICTIM in cohort for cohort in column(failed, "cohort")) >= 3
    for name in (*DIGESTS, "loss", "accuracy", "train_loss", "agreement", "answered", "cohort"):
        assert column(failed, name) == column(spared, name), name
    assert failed.summary["quality"] == spared.summary["quality"]
    assert min(column(failed, "answered")) == 3


def truncated(out: Answer) -> Answer:
    return replace(out, values=out.values[:-1])


def not_a_number(out: Answer) -> Answer:
    values = out.values.clone()
    values[-1] = float("nan")
    return replace(out, values=values)


def weightless(out: Answer) -> Answer:
    return replace(out, weight=0.0)


def overlong_votes(out: Answer) -> Answer:
    assert out.votes is not None
    return replace(out, votes=torch.cat([out.votes, out.votes[:9]]))


ODD = [
    ("tune", truncated, "values", "wrong shape: 13849 values, expected 13850"),
    ("tune", not_a_number, "hidden.weight", "NaN or infinite"),
    ("tune", weightless, "weight", "0.0 is not a positive number"),
    ("score", truncated, "values", "wrong shape"),
    ("score", not_a_number, "hidden.weight", "NaN or infinite"),
    ("score", overlong_votes, "", "ValueError: expected"),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("phase", "spoil", "field", "reason"), ODD)
def test_an_odd_answer_in_one_phase_is_refused_in_that_phase_alone(
    phase, spoil, field, reason, monkeypatch
):
    config = tiny(cohort=4)
    spared, _, _ = overheard(config, lambda q, p: q.kind == phase and p == VICTIM)

    def spoilt(question: Question, client: ClientContext) -> Answer:
        out = answer(question, client)
        return spoil(out) if (question.kind, client.partition) == (phase, VICTIM) else out

    monkeypatch.setattr("fedprune.client.partition_answers.answer", spoilt)
    failed = federate(config, inline_port(house_of(config)))
    named = [f for row in failed.rows for f in row["failures"]]
    assert named
    assert {(f["partition"], f["phase"], f["field"]) for f in named} == {(VICTIM, phase, field)}
    assert named[0]["reason"].startswith(reason)
    for name in (*DIGESTS, "loss", "agreement"):
        assert column(failed, name) == column(spared, name), name


def test_a_failure_is_one_short_line(monkeypatch):
    def loud(_question: Question, _seat: ClientContext) -> Answer:
        raise RuntimeError("first line\nsecond line " + "x" * 1000)

    monkeypatch.setattr("fedprune.client.partition_answers.answer", loud)
    question = Question("evaluate", 1, *first(house_of(tiny())), part="test")
    aggregate = inline_port(house_of(tiny())).ask(question, [0, 3])
    assert [f.partition for f in aggregate.failures] == [0, 3]
    reason = aggregate.failures[0].reason
    assert reason.startswith("RuntimeError: first line second line x")
    assert len(reason) == 300


def first(host: Host) -> tuple[dict[str, Tensor], Masks]:
    weights = {n: t.clone() for n, t in state_of(host.model).items()}
    masks = {n: torch.ones_like(weights[n], dtype=torch.bool) for n in host.layout.prunable}
    return weights, masks


@pytest.mark.slow
def test_too_few_answers_void_a_round():
    config = tiny(cohort=5, min_clients=3)
    result, _, states = overheard(config, lambda q, p: q.kind == "tune" and q.round == 2 and p > 1)
    assert column(result, "answered") == [5, 2, 5, 5, 5]
    assert digest(states[1].weights) == digest(states[0].weights)
    assert [state.completed for state in states] == [1, 1, 2, 3, 4]
    assert result.summary["rounds_completed"] == 4


@pytest.mark.slow
def test_a_pruning_that_too_few_answered_is_made_up_for():
    config = tiny(cohort=5, min_clients=3, schedule="one-shot", end=3)
    result, _, states = overheard(config, lambda q, p: q.kind == "score" and q.round == 3 and p > 1)
    removed = math.floor(0.7 * PRUNABLE + 0.5)
    assert column(result, "removed") == [0, 0, 0, removed, removed]
    assert [state.pending for state in states] == [False, False, True, False, False]


def test_a_run_that_nobody_answers_completes_no_round(monkeypatch):
    def fails(question: Question, client: ClientContext) -> Answer:
        if question.kind != "evaluate":
            raise RuntimeError("no")
        return answer(question, client)

    monkeypatch.setattr("fedprune.client.partition_answers.answer", fails)
    config = tiny()
    host = house_of(config)
    start = digest(state_of(host.model))
    with pytest.raises(NoRoundCompleted, match=r"client ., phase tune: RuntimeError: no") as told:
        federate(config, inline_port(host))
    result = told.value.result
    assert result.summary["rounds_completed"] == 0
    assert result.summary["sparsity"] == 0.0
    assert set(column(result, "weights_digest")) == {start}
    assert column(result, "train_loss") == [None] * 5
    assert column(result, "answered") == [0] * 5
    assert result.summary["failures"] == 5 * 3 + 3 * 3


@pytest.mark.slow
def test_a_run_that_nothing_can_measure_still_ends():
    result, _, _ = overheard(tiny(), lambda question, _: question.kind == "evaluate")
    assert column(result, "loss") == [None] * 5
    assert result.summary["quality"] == {"dense_at_pruning": None, "final": None}
    assert result.summary["rounds_completed"] == 5


@pytest.mark.parametrize("threshold", [0.01, 0.05])
def test_a_threshold_removes_what_is_at_or_below_it_once(threshold):
    config = tiny(sparsity=None, threshold=threshold, score="magnitude", end=3)
    result, _, states = overheard(config)
    weights = states[1].weights  # magnitude scores what was there after the warm-up
    for name, mask in states[2].masks.items():
        assert torch.equal(mask, weights[name].abs() > threshold), name
    removed = column(result, "removed")
    assert removed[:2] == [0, 0]
    assert 0 < removed[2] == removed[3] == removed[4] < PRUNABLE


@pytest.mark.parametrize("threshold", [1e3])
def test_a_threshold_above_everything_leaves_the_floor(threshold):
    result = played(tiny(sparsity=None, threshold=threshold, score="magnitude", end=3, floor=5))
    assert [int(mask.sum()) for mask in result.state.masks.values()] == [5, 5, 5]


def test_a_smaller_type_changes_what_the_clients_see():
    host = house_of(tiny(wire="bf16"))
    question = Question("evaluate", 1, *first(host), part="test")
    seen = decode_question(encode_question(question, "bf16"), host.layout)
    for name, w in question.weights.items():
        assert torch.equal(seen.weights[name], w.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, True])
def test_a_mask_is_sent_only_to_those_who_lack_it(failing):
    config = tiny(wire="bf16", cohort=4)
    host = bad_shard(house_of(config), "raises") if failing else house_of(config)
    eye = Spy(inline_port(host))
    result = federate(config, eye.port)
    held: dict[int, str] = {}
    down = evaluation = resent = 0
    for question, partitions, aggregate in eye.asked:
        packet = encode_question(question, "bf16")
        mask = mask_digest(question.masks)
        lacking = [p for p in partitions if held.get(p) != mask]
        assert not failing or VICTIM in lacking or VICTIM not in partitions
        values = (len(packet.head) + len(packet["values"])) * len(partitions)
        expected = values + len(encode_mask(question.masks)) * len(lacking)
        assert aggregate.bytes_down == expected
        resent += len(partitions) - len(lacking)
        held |= dict.fromkeys(aggregate.answered, mask)
        measures = question.kind in {"evaluate", "describe"}
        down += 0 if measures else expected
        evaluation += aggregate.bytes_down + aggregate.bytes_up if measures else 0
    assert resent > 20
    assert result.summary["bytes_down"] == down == column(result, "bytes_down")[-1]
    assert result.summary["bytes_evaluation"] == evaluation
    paid = [aggregate for question, _, aggregate in eye.asked if question.kind in {"score", "tune"}]
    up = sum(aggregate.bytes_up for aggregate in paid)
    assert result.summary["bytes_up"] == up == column(result, "bytes_up")[-1]


def test_who_did_not_answer_is_sent_the_mask_again():
    question = Question("tune", 1, *first(house_of(tiny())), known=frozenset([2]))
    sent = broadcast(question, "fp32")
    whole, lean = sent.size([0]), sent.size([2])
    assert whole - lean == len(encode_mask(question.masks))
    assert sent.size([0, 2, 4]) == 2 * whole + lean


@pytest.mark.sampled(1)
@pytest.mark.parametrize("wire", ["fp32", "fp16"])
@pytest.mark.parametrize("score", ["taylor", "magnitude"])
def test_arms_are_the_runs_they_stand_for_bit_for_bit(score, wire):
    keys = {"score": score, "wire": wire}
    both = played(tiny(**keys, baselines=("dense", "random")))
    alone = {
        "pruned": played(tiny(**keys)),
        "dense": played(tiny(**{**keys, "sparsity": 0.0})),
        "random": played(tiny(**{**keys, "score": "random"})),
    }
    assert [row["arm"] for row in both.rows] == [arm for arm in alone for _ in range(5)]
    for arm, result in alone.items():
        for name in both.rows[0].keys() - {"arm", "phase"}:
            assert column(both, name, arm) == column(result, name), (arm, name)
        quality = "final" if arm == "pruned" else arm
        assert both.summary["quality"][quality] == result.summary["quality"]["final"]
    digests = {column(both, "weights_digest", arm)[-1] for arm in alone}
    assert len(digests) == 3
    assert column(both, "removed", "dense") == [0] * 5
    assert column(both, "removed", "random") == column(both, "removed", "pruned")


@pytest.mark.slow
def test_dense_bytes_are_those_of_dense_fedavg():
    pruned, _, _ = overheard(tiny(wire="bf16"))
    dense, asked, _ = overheard(tiny(sparsity=0.0))
    assert dense.summary["bytes_dense"] == pruned.summary["bytes_dense"]
    first_masks = sum(len(encode_mask(asked[0][0].masks)) for _ in (1, 2, 3))
    sent = dense.summary["bytes_up"] + dense.summary["bytes_down"] - first_masks
    messages = 5 * 3 * 2
    assert dense.summary["bytes_dense"] == pytest.approx(sent, abs=40 * messages)
    every = sum(t.numel() for t in dense.state.weights.values())
    assert dense.summary["bytes_dense"] > messages * 4 * every
    assert pruned.summary["bytes_up"] < pruned.summary["bytes_dense"] / 2 * 0.7


def test_the_order_of_asking_does_not_matter():
    host = house_of(tiny())
    question = Question("tune", 1, *first(host), lr=0.05)
    port = inline_port(host)
    there, back = port.ask(question, [0, 1, 3, 4]), port.ask(question, [4, 1, 3, 0])
    assert there.total is not None
    assert back.total is not None
    assert torch.equal(there.total, back.total)
    assert (there.answered, there.totals) == (back.answered, back.totals)


def test_a_sum_does_not_depend_on_who_was_asked_before():
    host = house_of(tiny(optimizer="adamw"))
    question = Question("tune", 1, *first(host), lr=0.05)
    port = inline_port(host)
    alone = port.ask(question, [2]).total
    port.ask(replace(question, kind="score", score="gradient", sparsity=0.5), [0, 1])
    port.ask(question, [4])
    again = port.ask(question, [2]).total
    assert alone is not None
    assert again is not None
    assert torch.equal(alone, again)


@pytest.mark.parametrize(
    ("clients", "hosts", "expected"),
    [
        (5, 2, {0: [0, 1, 2], 1: [3, 4]}),
        (5, 5, {0: [0], 1: [1], 2: [2], 3: [3], 4: [4]}),
        (5, 1, {0: [0, 1, 2, 3, 4]}),
    ],
)
def test_partitions_belong_to_hosts_in_order(clients, hosts, expected):
    config = tiny(clients=clients, hosts=hosts)
    assert grouped(list(reversed(range(clients))), config) == expected
    few = grouped([4, 0], config)
    assert all(set(few[host]) <= set(expected[host]) for host in few)


def test_labels_are_told_by_partition():
    host = house_of(tiny())
    assert labels_of(host) == {p: len(s.train["labels"]) for p, s in host.shards.items()}
    assert sum(labels_of(host).values()) == pytest.approx(0.8 * 1797, abs=5)


@pytest.mark.slow
def test_a_run_may_begin_with_given_weights():
    config = tiny(rounds=3, warmup=1, end=2)
    given = masked(played(tiny()).state.weights, {})
    result = federate(config, inline_port(house_of(config)), weights=given)
    assert column(result, "weights_digest")[0] != column(played(config), "weights_digest")[0]
    assert result.rows[0]["loss"] < played(config).rows[0]["loss"]


@pytest.mark.slow
def test_the_same_run_twice_is_the_same_bits_and_another_seed_is_not():
    config = tiny()
    assert federate(config, inline_port(house_of(config))).rows == played(config).rows
    assert (
        played(tiny(seed=4)).rows[-1]["weights_digest"] != played(config).rows[-1]["weights_digest"]
    )


@pytest.mark.slow
def test_watching_changes_nothing():
    assert overheard(tiny())[0].rows == played(tiny()).rows


def totals_at(host: Host, *places: tuple[int, int]) -> list[str]:
    """Digests of the changes at (round, partition), with everything else the same."""
    question = Question("tune", 1, {n: t.clone() for n, t in state_of(host.model).items()}, {})
    question = replace(question, lr=0.1)
    port = inline_port(host)
    before = torch.random.get_rng_state()
    totals = [port.ask(replace(question, round=r), [p]).total for r, p in places]
    assert torch.equal(torch.random.get_rng_state(), before)
    return [digest({"": t}) for t in totals if t is not None]


def test_batches_are_drawn_by_round_and_partition():
    host = house_of(tiny())
    host = replace(host, shards=dict.fromkeys(range(5), host.shards[0]))
    totals = totals_at(host, (1, 0), (1, 0), (2, 0), (1, 3))
    assert totals[0] == totals[1]
    assert len(set(totals)) == 3


def test_dropout_is_drawn_by_round_and_partition():
    """All rows are the same, so that the order of rows changes nothing and dropout alone does."""
    host = house_of(tiny())
    part = {k: t[:1].expand(20, *t.shape[1:]) for k, t in host.shards[0].train.items()}
    host = replace(host, shards=dict.fromkeys(range(5), Shard(part, part, part)))
    assert len(set(totals_at(host, (1, 0), (2, 0), (1, 3)))) == 1
    hidden = host.model.get_submodule("hidden")
    hidden.register_forward_pre_hook(lambda m, x: (dropout(x[0], training=m.training),))
    totals = totals_at(host, (1, 0), (1, 0), (2, 0), (1, 3))
    assert totals[0] == totals[1]
    assert len(set(totals)) == 3
