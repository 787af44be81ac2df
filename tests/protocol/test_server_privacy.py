import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedprune import federate
from fedprune.client.host import Host, build_host
from fedprune.client.partition_answers import answered
from fedprune.config import RunConfig, configure
from fedprune.config.measured_noise import metric_spread
from fedprune.config.terms import accounting_terms_of
from fedprune.engines.inline import inline_port
from fedprune.learning.candidates import HERE, Candidate
from fedprune.privacy.ledger import Ledger, Spent, open_ledger
from fedprune.privacy.release import Release
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.client_privacy import leaving
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.models import layout_at
from fedprune.protocol.port import Port
from fedprune.protocol.running_sum import as_sum
from fedprune.protocol.server_noise import _measured
from fedprune.protocol.server_privacy import name_of, private_port, ready_port
from fedprune.protocol.stored import Stored
from fedprune.server.state import first_state
from fedprune.tensors.named import count_kept

DIGITS = {"task": "digits", "model": "mlp", "clients": 6, "cohort": 4, "engine": "inline"}
DIGITS |= {"rounds": 3, "warmup": 1, "local_steps": 2, "batch_size": 8, "sparsity": 0.5}
NOISE = {"dp": "client", "dp_noise": 2.0, "panel": 2}


def config_of(**keys: Any) -> RunConfig:
    return configure({**DIGITS, **keys})


@pytest.fixture(scope="module")
def host() -> Host:
    return build_host(config_of(**NOISE))


def answering(values: torch.Tensor, config: RunConfig) -> Port:
    """A port whose clients all have the same values to release."""

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        total = Aggregate()
        for p in partitions:
            answer = Answer(values.clone(), 3.0, {"loss": 1.0, "count": 3.0})
            total = as_sum(leaving(answer, question, config), p, 0, total)
        return total

    return Port(ask, lambda: dict.fromkeys(range(config.clients), 1))


def gated(port: Port, c: RunConfig, arm: str = "pruned") -> tuple[Port, Ledger]:
    """The port as it is asked where clients are protected, and what is booked there."""
    ledger = open_ledger(None, accounting_terms_of(c))
    return private_port(port, c, ledger, arm), ledger


def about(host: Host, kind: str, round_: int = 1, **what: Any) -> Question:
    state = first_state(host.model, host.layout)
    return Question(kind, round_, state.weights, state.masks, **what)


def tuning(config: RunConfig, host: Host, masked: float = 0.0) -> tuple[Question, int]:
    state = first_state(host.model, host.layout)
    masks = {n: m.clone() for n, m in state.masks.items()}
    for m in masks.values():
        m.view(-1)[: int(masked * m.numel())] = False
    question = Question("tune", 1, state.weights, masks, lr=0.1)
    return question, form_of(question, config, layout_at(config, ())).values


def test_the_sum_has_the_noise_that_is_booked_over_a_fixed_denominator(host):
    c = config_of(**NOISE, dp_clip=0.5)
    question, size = tuning(c, host)
    port, ledger = gated(answering(torch.ones(size), c), c)
    aggregate = port.ask(question, [0, 1, 3])
    noise = aggregate.total - 3 * 0.5 / size**0.5
    (line,) = (x for x in ledger.lines if x["quantity"] == "changes")
    booked = line["z"] * line["sensitivity"]
    assert booked == 2.0 * 2 * 0.5  # replace one: two norms
    assert noise.std().item() == pytest.approx(booked, rel=0.05)
    assert abs(noise.mean().item()) < 5 * booked / size**0.5
    assert aggregate.weight == 4.0 == line["denominator"]  # of the cohort, not of who answered
    assert aggregate.totals == {"count": 4.0}


def test_removed_coordinates_get_no_noise(host):
    c = config_of(**NOISE)
    question, size = tuning(c, host, masked=0.5)
    whole = sum(t.numel() for t in question.weights.values())
    assert size < whole - 0.4 * count_kept({n: m | True for n, m in question.masks.items()})
    port, _ = gated(answering(torch.ones(size), c), c)
    assert port.ask(question, [0]).total.numel() == size


def test_the_same_question_has_the_same_noise_and_another_one_has_not(host):
    c = config_of(**NOISE, noise_source="seeded")
    question, size = tuning(c, host)

    def total(asked: Question, arm: str = "pruned", partitions: Sequence[int] = (0, 1)) -> Any:
        return gated(answering(torch.zeros(size), c), c, arm)[0].ask(asked, partitions).total

    first = total(question)
    assert torch.equal(first, total(question))
    assert not torch.equal(first, total(question, "random"))
    assert not torch.equal(first, total(question, partitions=(0, 2)))
    assert not torch.equal(first, total(replace(question, round=2)))
    moved = {n: w + 1 for n, w in question.weights.items()}
    assert not torch.equal(first, total(replace(question, weights=moved)))


def test_other_candidates_of_the_same_model_are_another_release(host):
    c = config_of(dp="client", dp_noise=2.0)
    name = host.layout.prunable[0]
    first = about(host, "compare", part="validation", candidates=(HERE, Candidate(1.0)))
    others = (
        replace(first, candidates=(HERE, Candidate(2.0))),
        replace(first, candidates=(HERE, Candidate(apart={name: 1.0}))),
        replace(first, rungs={name: torch.ones(2, dtype=torch.uint8)}),
        replace(first, given={name: torch.ones(2)}),
    )
    assert name_of(first, [0], c) == name_of(replace(first), [0], c)
    for other in others:
        assert name_of(first, [0], c) != name_of(other, [0], c)


def test_nobody_drawn_is_noise_alone(host):
    c = config_of(dp="client", dp_noise=2.0, sampling="poisson")
    question, size = tuning(c, host)
    aggregate = gated(answering(torch.ones(size), c), c)[0].ask(question, [])
    assert aggregate.total.numel() == size
    assert aggregate.total.std().item() == pytest.approx(2.0, rel=0.05)  # add or remove: one norm


def test_a_statistic_that_is_never_negative_stays_so_and_has_less_noise(host):
    c = config_of(**NOISE, score="fisher")
    port, ledger = gated(inline_port(build_host(c)), c)
    assert port.ask(about(host, "score", 2, score="fisher"), [0, 1, 2, 3]).total.min() == 0.0
    (line,) = (x for x in ledger.lines if x["quantity"] == "scores")
    assert line["sensitivity"] == pytest.approx(2**0.5)


def test_only_parts_of_the_labels_are_held_to_one_each():
    """Bytes of a token, or squares of a value, are more than one: perplexities a byte depend on it.

    Six clients whose means are 4 bytes a label; noise has made 7 of at most 6 right ones.
    """
    release = Release("metrics", ("totals.bytes", "totals.correct", "totals.squared"))
    aggregate = Aggregate(totals={"bytes": 24.0, "correct": 7.0, "squared": -1.0})
    c = config_of(dp="client", dp_noise=0.01, cohort=6, clients=6)
    found = _measured(aggregate, c, (release,), lambda count: torch.zeros(count))
    assert found.totals == {"bytes": 24.0, "correct": 6.0, "squared": 0.0, "count": 6.0}
    release = Release("metrics", ("totals.clients_in_0", "totals.clients_in_1"))
    aggregate = Aggregate(totals={"clients_in_0": -0.5, "clients_in_1": 6.5})
    found = _measured(aggregate, c, (release,), lambda count: torch.zeros(count))
    assert found.totals == {"clients_in_0": -0.5, "clients_in_1": 6.5, "count": 6.0}


def test_metrics_are_noised_means_over_everyone(host):
    c = config_of(dp="client", dp_noise=0.01, cohort=6)
    ask = about(host, "evaluate", part="test")
    port, ledger = gated(inline_port(build_host(c)), c)
    noised, plain = port.ask(ask, range(6)), inline_port(build_host(config_of(cohort=6)))
    alone = [plain.ask(ask, [p]).totals for p in range(6)]
    mean = sum(t["loss"] / t["count"] for t in alone) / 6
    assert noised.totals["count"] == 6.0
    assert noised.totals["loss"] / 6.0 == pytest.approx(mean, abs=0.3)
    assert noised.totals["loss"] / 6.0 != pytest.approx(mean, abs=1e-6)
    (line,) = (x for x in ledger.lines if x["quantity"] == "metrics")
    said = [line[name] for name in ("mechanism", "audience", "sensitivity")]
    assert said == ["gaussian", "everyone", 20]


def test_what_the_budget_does_not_allow_is_not_asked(host):
    c = config_of(**NOISE, epsilon=4.0)
    question, size = tuning(c, host)
    asked: list[int] = []
    port = answering(torch.ones(size), c)

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        asked.append(question.round)
        return port.ask(question, partitions)

    gate, ledger = gated(replace(port, ask=ask), c)
    rounds = (replace(question, round=i) for i in range(1, 50))
    with pytest.raises(Spent):
        [gate.ask(each, [0, 1, 2, 3]) for each in rounds]
    assert 0 < len(asked) < 49
    assert ledger.epsilon <= 4.0
    assert {line["round"] for line in ledger.lines} == set(asked)


@pytest.mark.slow
def test_a_run_stops_before_the_round_that_the_budget_does_not_allow(tmp_path):
    c = config_of(**NOISE, epsilon=4.0, rounds=12)
    result = federate(c, folder=tmp_path / "run")
    played = [row["round"] for row in result.rows]
    assert played
    assert played == list(range(1, len(played) + 1))
    assert len(played) < 12
    assert result.summary["privacy"]["total"] <= 4.0
    assert result.summary["quality"]["final"] is not None  # the panel measures at no cost
    lines = [json.loads(x) for x in (tmp_path / "run" / "privacy.jsonl").read_text().splitlines()]
    spent = [line["epsilon"] for line in lines]
    assert spent == sorted(spent)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"panel": 2}, {"blend": "global", "cohort": 6}], ids=str)
def test_a_budget_alone_says_how_much_noise_and_is_spent_at_the_end(keys):
    c = config_of(dp="client", epsilon=20.0, **keys)
    assert c.dp_score_noise == c.dp_noise is not None
    result = federate(c)
    assert [row["round"] for row in result.rows] == [1, 2, 3]
    assert "stopped" not in result.summary["privacy"]
    assert 0.98 * 20 <= result.summary["privacy"]["rdp"] <= 20.0
    assert configure(c.model_dump()) == c
    more = config_of(dp="client", epsilon=5.0, **keys)
    assert (more.dp_noise or 0.0) > (c.dp_noise or 0.0)


def test_what_clients_tell_before_they_are_asked_is_booked():
    for keys, told in (({}, True), (NOISE, False)):
        c = config_of(**keys)
        ledger = open_ledger(None, accounting_terms_of(c))
        ready_port(inline_port(build_host(c)), c, ledger, "pruned")
        assert bool(ledger.lines) is told
        assert set(inline_port(build_host(c)).present().values()) == {0} or told


def test_clients_drawn_from_fewer_are_booked_as_what_they_are(host):
    c = config_of(**{**NOISE, "cohort": 2})
    question, size = tuning(c, host)

    def epsilon(there: int) -> float:
        base = answering(torch.zeros(size), c)
        present = dict.fromkeys([*range(there), 4, 5], 0)
        gate, ledger = gated(replace(base, present=lambda: present), c)
        gate.present()
        gate.ask(question, [0, 1])
        return ledger.epsilon

    assert epsilon(4) < epsilon(3) < epsilon(2)


def test_the_noise_reaches_the_model():
    quiet = {"dp_noise": 0.0, "dp_score_noise": 0.0, "allow_uncovered": True}
    once = {"rounds": 1, "warmup": 0, "sparsity": 0.0, "schedule": "cubic"}
    ends = [
        federate(config_of(**{**NOISE, **once, **keys})).state.weights
        for keys in (quiet, {"dp_noise": 3.0})
    ]
    moved = torch.cat([(ends[1][n] - ends[0][n]).flatten() for n in ends[0]])
    # Three sensitivities of two norms, over a cohort of four.
    assert moved.std().item() == pytest.approx(3.0 * 2.0 / 4.0, rel=0.05)


def test_what_hides_examples_leaves_its_client_noised_metrics_and_all():
    c = config_of(dp="example", dp_noise=2.0, dp_metric_clip=5.0, noise_source="seeded")
    served = build_host(c)
    question = about(served, "evaluate", part="test")
    other = replace(question, part="validation")
    exact = replace(served, config=config_of())
    left = [answered(served, question, p).totals for p in range(6)]
    plain = [answered(exact, question, p).totals for p in range(6)]
    extra = torch.tensor(
        [[t[n] - p[n] / p["count"] for n in t] for t, p in zip(left, plain, strict=True)]
    )
    assert extra.std().item() == pytest.approx(2.0 * 2 * 5.0, rel=0.25)
    assert answered(served, question, 0).totals == left[0]
    assert answered(served, other, 0).totals != left[0]
    aggregate = gated(inline_port(served), c)[0].ask(question, range(6))
    # Nothing is added to the sum of what was noised already, but for the ends of what can be.
    total = sum(t["loss"] for t in left)
    assert aggregate.totals["loss"] == pytest.approx(max(0.0, total))
    assert metric_spread(c) == pytest.approx(2.0 * 2 * 5.0 / 6**0.5)


@pytest.mark.parametrize("source", ["seeded", "secret"])
def test_only_what_is_stored_is_released_again_at_no_cost(host, tmp_path, source):
    """Client 3 failed before the kill and answers after it: fresh noise, and booked."""
    c = config_of(**NOISE, noise_source=source)
    question, size = tuning(c, host)
    ledger, asked = open_ledger(None, accounting_terms_of(c)), list[int]()

    def put(stored: Stored | None, value: float) -> Aggregate:
        there = answering(torch.full((size,), value), c)

        def ask(what: Question, partitions: Sequence[int]) -> Aggregate:
            asked.append(what.again)
            return there.ask(what, partitions)

        port = private_port(replace(there, ask=ask), c, ledger, "pruned", stored)
        return port.ask(question, [0, 1])

    first = put(Stored(tmp_path), 0.0)
    spent = ledger.epsilon
    again = put(Stored(tmp_path), 1.0)
    assert ledger.epsilon == spent
    assert (len(asked), again.answered, again.totals) == (1, first.answered, first.totals)
    assert torch.equal(first.total, again.total)
    other = put(None, 0.0)
    assert ledger.epsilon > spent
    assert asked == [0, 1]
    assert not torch.equal(first.total, other.total)
    assert float((first.total - other.total).std()) > 1.0
