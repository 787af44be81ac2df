"""Answers that are well formed and lie: nothing they say ends a run or spoils the model."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedprune import federate
from fedprune.client import partition_answers, serving
from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.config import configure
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import LOUD, Aggregate
from fedprune.protocol.checks import check_sum, check_summand
from fedprune.protocol.form import Form
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import encode_answer, understood
from fedprune.protocol.running_sum import as_sum, summed
from fedprune.scores.catalog import SCORES
from fedprune.scores.input_sums import factored, improper
from fedprune.tasks.measures import METRICS, measures
from fedprune.tensors.named import digest
from tests.runs import tiny

Lie = Callable[[Answer], Answer]
KEYS: dict[str, Any] = {"model": "mlp", "clients": 4, "cohort": 4, "rounds": 3, "local_steps": 1}
KEYS |= {"warmup": 0, "end": 1}


@pytest.fixture
def lied(monkeypatch) -> Callable[..., None]:
    """Has client 1 send something else than it was to, in some kinds of answer and some rounds."""

    def by(lie: Lie, kinds: set[str], rounds: range = range(1, 99)) -> None:
        encoded = serving.encoded

        def bent(host: Any, question: Question, partition: int, meant: Answer) -> Any:
            lies = partition == 1 and question.kind in kinds and question.round in rounds
            return encoded(host, question, partition, lie(meant) if lies else meant)

        monkeypatch.setattr(serving, "encoded", bent)

    return by


def filled(value: float) -> Lie:
    return lambda given: replace(given, values=torch.full_like(given.values, value))


def weighing(weight: float) -> Lie:
    return lambda given: replace(given, weight=weight)


def told(**totals: float) -> Lie:
    return lambda given: replace(given, totals={**given.totals, **totals})


NOT_INPUTS: dict[str, Any] = {"score": "sparsegpt", "schedule": "one-shot"}
SPOILT: list[tuple[Mapping[str, Any], str, Lie, str]] = [
    ({"score": "wanda"}, "score", filled(-1.0), "features.1.weight/inputs"),
    ({"score": "fisher"}, "score", filled(-1e-9), "features.1.weight"),
    (NOT_INPUTS, "score", filled(-1.0), "features.1.weight/inputs"),
    ({"reconstruct": "inputs"}, "inputs", filled(-1.0), "features.1.weight/inputs"),
    ({"combine": "mean", "score_weighting": "equal"}, "score", weighing(2.0), "weight"),
    ({}, "score", weighing(2.0**53), "weight"),
    ({"weighting": "equal"}, "tune", weighing(3.0), "weight"),
    ({}, "tune", weighing(1e-300), "weight"),
    ({}, "tune", filled(1e16), "features.1.weight"),
    ({}, "describe", filled(-1.0), "test"),
    ({}, "evaluate", told(count=1e-300), "count"),
    ({}, "evaluate", told(loss=-1e300), "loss"),
    ({}, "evaluate", told(correct=1e9), "correct"),
    ({}, "evaluate", told(tp_0=1e9), "tp_0"),
]  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("keys", "kind", "lie", "field"), SPOILT)
def test_what_cannot_be_is_refused_by_name_and_the_others_go_on(keys, kind, lie, field, lied):
    lied(lie, {kind})
    seen = federate(tiny(**{**KEYS, "rounds": 1, "warmup": 0, **keys}))
    assert seen.summary["rounds_completed"] == 1
    failures = [f for row in seen.rows for f in row["failures"]]
    assert {f["partition"] for f in failures} <= {1}
    if kind != "describe":  # what comes before round one is in no row
        assert {(f["phase"], f["field"]) for f in failures} == {(kind, field)}
    assert all(bool(torch.isfinite(t).all()) for t in seen.state.weights.values())


BROKEN: list[Lie] = [filled(9e14), filled(-1e12)]


@pytest.mark.parametrize("lie", BROKEN, ids=["9e14", "-1e12"])
def test_a_model_that_gives_nobody_a_number_takes_nobodys_place(lie, lied):
    """It is finite, and so is each change. The liar is named; those who measured it are not."""
    lied(lie, {"tune"}, range(2, 3))
    keys = {**KEYS, "model": "cnn", "strikes": 1}
    seen = federate(tiny(**keys))
    (failure,) = seen.rows[1]["failures"]
    assert (failure["partition"], failure["phase"], failure["field"]) == (1, "tune", "values")
    assert failure["reason"].startswith("a change of size ")
    assert "of the new model 4 clients get no number" in failure["reason"]
    assert seen.rows[1]["undone"].startswith("void, nothing changes: of the new model")
    assert seen.rows[1]["weights_digest"] == seen.rows[0]["weights_digest"]
    assert seen.rows[1]["loss"] == seen.rows[0]["loss"]
    assert (seen.rows[1]["answered"], seen.summary["failures"]) == (3, 1)
    assert seen.rows[2]["cohort"] == [0, 2, 3], "it is the one who is left out"
    assert seen.summary["rounds_completed"] == 2


def test_clients_whose_own_data_give_no_number_spoil_no_round(monkeypatch):
    """Of the old model they get none either: it is not the new one's fault."""

    def nan(question: Question, client: ClientContext) -> Answer:
        given = answer(question, client)
        lost = question.part == "validation" and client.partition != 0
        return told(loss=float("nan"))(given) if lost else given

    plain = federate(tiny(**KEYS))
    monkeypatch.setattr(partition_answers, "answer", nan)
    seen = federate(tiny(**KEYS))
    assert digest(seen.state.weights) == digest(plain.state.weights)
    assert [len(row["failures"]) for row in seen.rows] == [3] * 3


HELD = Aggregate(
    *(torch.ones(2).double(), 8.0, {}, torch.tensor([2, 1]), (0, 1)),
    held=torch.tensor([8.0, 3.0]).double(),
)


@pytest.mark.parametrize("held", [[9.0, 3.0], [8.0, 0.5], [8.0, 1e-290], [-1.0, 3.0]])
def test_who_holds_what_weighs_no_more_than_all_and_no_less_than_the_votes(held):
    form = Form({"w": torch.Size([2])}, {"w": torch.ones(2).bool()}, voters=2, own=True)
    check_sum(HELD, form)
    with pytest.raises(Refused) as e:
        check_sum(replace(HELD, held=torch.tensor(held, dtype=torch.float64)), form)
    assert e.value.field == "held"


@pytest.mark.parametrize("size", [1e16, 1e38])
def test_honest_sums_of_squares_of_large_values_count(size):
    """Of a regression whose labels are not rescaled: float32 values, their squares in float64."""
    totals = {"loss": size**2, "squared": size**2, "y_squares": 3 * size**2, "count": 3.0}
    form = Form({}, {}, frozenset(totals))
    check_summand(torch.empty(0), 1.0, totals, form)
    for name in ("loss", "squared"):
        with pytest.raises(Refused):
            check_summand(torch.empty(0), 1.0, {**totals, name: 1e300}, form)


@pytest.mark.parametrize("size", [3, 8])
def test_sums_of_inputs_pass_and_what_is_none_does_not(size):
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(size))
    good = {"w/inputs": x.T @ x, "w/rows": torch.tensor([5.0])}
    assert improper(good) == ""
    assert improper({**good, "w/inputs": -good["w/inputs"]}) == "w/inputs"
    assert improper({**good, "w/inputs": torch.ones(size, size) - 1.01 * torch.eye(size)}) != ""
    assert improper({**good, "w/rows": torch.tensor([-1.0])}) == "w/rows"


@pytest.mark.parametrize("upper", [False, True])
def test_of_a_matrix_that_is_no_sum_of_squares_the_nearest_is_factored(upper):
    """By the eigenvalues of numpy; of one that is, torch's own factor, bit for bit."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).double()
    good = x.T @ x
    assert torch.equal(factored(good, upper=upper), torch.linalg.cholesky(good, upper=upper))
    bad = torch.tensor([[1.0, -0.9, -0.9], [-0.9, 1.0, -0.9], [-0.9, -0.9, 1.0]]).double()
    found = factored(bad, upper=upper)
    near = found.T @ found if upper else found @ found.T
    values, vectors = torch.linalg.eigh(bad)
    wanted = vectors @ torch.diag(values.clamp_min(1e-6 * 1.9)) @ vectors.T
    assert torch.allclose(near, wanted, atol=1e-9)
    assert bool(torch.isfinite(factored(torch.zeros(3, 3).double())).all())


def test_rows_one_by_one_are_written_once(monkeypatch):
    """Memory is asked for as often as it doubles, not once a client."""
    grown: list[int] = []
    empty = torch.Tensor.new_empty

    def counted(self: Any, *shape: int) -> Any:
        grown.extend(shape[:1] if len(shape) == 2 else ())
        return empty(self, *shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", counted)
    aggregate, rows = Aggregate(), [torch.tensor([float(p), -p]) for p in range(50)]
    for p, row in enumerate(rows):
        aggregate = as_sum(Answer(row, 1.0, {}), p, 1, aggregate, singly=True)
    assert torch.equal(aggregate.singles, torch.stack(rows))
    assert grown == [4, 10, 22, 46, 94]
    both = summed([aggregate, aggregate])
    assert both.singles.shape == (100, 2)


def test_of_large_changes_it_is_known_whose_they_are():
    sums = [Answer(torch.tensor([1.0, -size]), 2.0, {}) for size in (LOUD, 2 * LOUD, 0.0)]
    aggregate = summed(as_sum(a, p, 1, loud=LOUD) for p, a in enumerate(sums))
    assert aggregate.loud == ((1, 2 * LOUD),)


def test_an_answer_has_no_head_of_megabytes():
    question = Question("evaluate", 1, {}, {}, part="validation")
    totals = {f"name{i}": 1.0 for i in range(10_000)}
    packet = encode_answer(Answer(torch.empty(0), 1.0, totals), question, "fp32")
    form = Form({}, {}, frozenset({"loss", "correct", "count"}))
    with pytest.raises(Refused, match="a head of"):
        understood(packet, question, form)


@pytest.mark.slow
def test_noise_on_examples_makes_no_lie_of_inputs():
    """Numbers of rows and squares with noise may be below 0, and need not fit each other."""
    keys = {"task": "digits", "model": "mlp", "clients": 4, "cohort": 2, "rounds": 1, "warmup": 0}
    keys |= {"engine": "inline", "local_steps": 1, "dp": "example", "score": "wanda"}
    for noise in (20.0, 50.0, 100.0):
        result = federate(configure({**keys, "dp_noise": noise}))
        assert result.summary["failures"] == 0
        assert any(not m.all() for m in result.state.masks.values())


OWN_SCORES = """
from dataclasses import replace
from fedprune.scores.catalog import SCORES as ours

def logarithm(evidence):
    return {n: (s + 1e6).log() for n, s in evidence.sums.items()}

def root(evidence):
    if min(float(s.min()) for s in evidence.sums.values()) < -1e6:
        raise ValueError("negative")
    return evidence.sums

def given(evidence):
    return logarithm(evidence)

first, second = ours["grasp"].asks
SCORES = {
    "log": replace(ours["taylor_signed"], finalise=logarithm),
    "root": replace(ours["taylor_signed"], finalise=root),
    "asked": replace(ours["grasp"], asks=(first, replace(second, given=given))),
}
"""


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"score": "log"}, "no score comes of the sums: NaN for "),
        ({"score": "root"}, "no score comes of the sums: ValueError: negative"),
        ({"score": "asked"}, "no question comes of the sums: "),
    ],
)
def test_statistics_of_which_no_score_comes_end_no_run(keys, why, tmp_path, lied):
    """The liar is named, nothing is pruned, and the next round makes up for it."""
    (tmp_path / "own.py").write_text(OWN_SCORES)
    lied(filled(-1e12), {"score"}, range(1, 2))
    given = {**KEYS, "agreement": False, "schedule": "one-shot", **keys}
    seen = federate(tiny(plugin=str(tmp_path / "own.py"), **given))
    (failure,) = seen.rows[0]["failures"]
    assert (failure["partition"], failure["phase"], failure["field"]) == (1, "score", "values")
    assert failure["reason"].startswith(f"statistics of size 1e+12: {why}")
    assert seen.rows[0]["undone"].startswith(f"not pruned: {why}")
    assert [row["sparsity"] > 0 for row in seen.rows] == [False, True, True]


FILLS = [1e30, 1e12, 0.0, -1e12, -1e29]
OTHERS = {
    *("magnitude", "random", "synflow", "contribution", "block_influence", "block_similarity")
}
"""They ask nobody, or are of layers, which the digits' model has none of."""

ONCE = ["sparsegpt", "flap", *(name for name, score in SCORES.items() if score.at_start)]
"""They prune in one round alone: a run for each lie."""

HARD = [*((s, FILLS) for s in SCORES if s not in {*OTHERS, *ONCE})]
HARD += [(s, [fill]) for s in ONCE for fill in FILLS]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("score", "fills"), HARD)
def test_no_finite_statistics_end_a_run_of_a_built_in_score(score, fills, lied):
    """Another lie in each round, and each round prunes."""
    for i, fill in enumerate(fills, 1):
        lied(filled(fill), {"score"}, range(i, i + 1))
    keys = {**KEYS, "rounds": len(fills), "end": len(fills), "agreement": False}
    keys |= {} if SCORES[score].tuning else {"score_examples": 40}
    keys |= {"schedule": "one-shot" if score in ONCE else "linear"}
    keys |= {"unit": "row"} if score == "ablation" else {}  # not a pass for every weight
    keys |= {"model": "vit"} if score == "flap" else {}
    seen = federate(tiny(score=score, **keys))
    assert {f["partition"] for row in seen.rows for f in row["failures"]} <= {1}
    assert all(bool(torch.isfinite(t).all()) for t in seen.state.weights.values())
    sparse = [row["sparsity"] for row in seen.rows]
    assert all(a < b for a, b in pairwise([0.0, *sparse]))
    assert sparse[-1] > 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_a_number_or_none_for_all_sums_that_pass(metric):
    chance = random.Random(metric)
    names = {name for about in METRICS.values() for name in about.sums}
    names |= {"loss", "correct", "absolute", "examined", "exact", "rouge_l"}
    names |= {"copied_exact", "copied_rouge_l"}
    for _ in range(300):
        totals = {n: chance.choice([0.0, 1.0, 1e-300, 1e90, 3e38]) for n in sorted(names)}
        totals |= {
            "count": chance.choice([0.0, 1.0, 2.0**53]),
            "loss": chance.choice([-1e90, 1e90]),
        }
        assert all(isinstance(v, float) for v in measures(totals, metric).values())
