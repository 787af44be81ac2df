"""Whose changes count: bounds on norms, models that are not finite, strikes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedprune import Result, federate
from fedprune.client import partition_answers
from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Answer, Question
from fedprune.report.screen import Screen
from fedprune.server.rows import Row
from fedprune.server.standing import limit_of, struck
from fedprune.server.state import Book, Model, State
from fedprune.server.watch import Watch
from fedprune.tensors.named import digest
from tests.runs import tiny

Lie = Callable[[Question, Answer], Answer]
KEYS: dict[str, Any] = {"clients": 5, "cohort": 5, "hosts": 2, "rounds": 4, "local_steps": 1}
KEYS |= {"warmup": 0, "end": 1, "score": "magnitude"}


@pytest.fixture
def lied(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has a client bend its answers to some questions in some rounds."""

    def by(partition: int, lie: Lie, rounds: range = range(1, 99), kind: str = "tune") -> None:
        def bent(question: Question, client: ClientContext) -> Answer:
            given = answer(question, client)
            here = client.partition == partition and question.kind == kind
            return lie(question, given) if here and question.round in rounds else given

        monkeypatch.setattr(partition_answers, "answer", bent)

    return by


def times(factor: float) -> Lie:
    return lambda _, given: replace(given, values=given.values * factor)


def fails(_question: Question, _given: Answer) -> Answer:
    raise Refused("battery", "empty")


def named(row: Row) -> list[tuple[int, str]]:
    return [(f["partition"], f["reason"]) for f in row["failures"]]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [5.0, "auto"])
def test_a_change_beyond_the_bound_is_refused_by_name(limit, lied):
    """The others' changes are those of a run in which it never answered."""
    lied(2, times(1e4), range(2, 4))
    seen = federate(tiny(**KEYS, max_norm=limit))
    told = [named(row) for row in seen.rows]
    assert [[p for p, _ in each] for each in told] == [[], [2], [2], []]
    assert "max-norm is " in told[1][0][1]
    lied(2, fails, range(2, 4))
    assert digest(federate(tiny(**KEYS)).state.weights) == digest(seen.state.weights)


def test_in_a_first_round_the_bound_is_the_rounds_own(lied):
    lied(2, times(1e4))
    seen = federate(tiny(**KEYS, max_norm="auto"))
    assert [[p for p, _ in named(row)] for row in seen.rows] == [[2]] * 4
    assert [row["answered"] for row in seen.rows] == [4] * 4
    assert ["max-norm" in (row["undone"] or "") for row in seen.rows] == [True, False, False, False]
    assert len(seen.state.book.norms) == 16
    assert max(seen.state.book.norms) < 10.0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("limit", [1e6, "auto", None])
def test_a_bound_that_all_keep_changes_nothing(limit):
    there, plain = federate(tiny(**KEYS, max_norm=limit)), federate(tiny(**KEYS))
    assert digest(there.state.weights) == digest(plain.state.weights)


def test_the_running_median_is_of_what_counted():
    config = configure({"task": "digits", "max_norm": "auto"})
    assert limit_of(config, ()) == 0.0
    assert limit_of(config, (3.0, 1.0, 100.0)) == 15.0
    assert limit_of(configure({"task": "digits", "max_norm": 7}), (1.0,)) == 7.0


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e31, 3e38])
def test_who_would_make_the_model_infinite_is_refused_alone(size, lied):
    lied(1, lambda _, given: replace(given, values=torch.full_like(given.values, -size)))
    seen = federate(tiny(**KEYS, server_lr=2.0))
    assert [[p for p, _ in named(row)] for row in seen.rows] == [[1]] * 4
    assert seen.state.completed == 4
    lied(1, fails)
    assert digest(federate(tiny(**KEYS, server_lr=2.0)).state.weights) == digest(seen.state.weights)


def test_a_model_that_is_not_finite_takes_nobodys_place():
    config = tiny(**KEYS)
    port = inline_port(build_host(config))

    def ask(question: Question, partitions: list[int]) -> Aggregate:
        aggregate = port.ask(question, partitions)
        bad = question.kind == "tune" and question.round == 2
        return (
            replace(aggregate, total=torch.full_like(aggregate.total, 1e60)) if bad else aggregate
        )

    seen = federate(config, replace(port, ask=ask))
    assert [row["undone"] for row in seen.rows][1].endswith("the new model would not be finite")
    assert seen.rows[1]["weights_digest"] == seen.rows[0]["weights_digest"]
    assert all(bool(torch.isfinite(t).all()) for t in seen.state.weights.values())


def cohorts(result: Result) -> list[list[int]]:
    return [row["cohort"] for row in result.rows]


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_who_fails_again_and_again_is_left_out_for_a_while(lied, tmp_path, capsys):
    """Twice in a row: out for two rounds; back, it has one try. Screen, rows and page say so."""
    lied(3, fails)
    keys = {**KEYS, "rounds": 9, "strikes": 2, "out": str(tmp_path)}
    seen = federate(tiny(**keys), folder=tmp_path, watch=Screen().watch())
    printed = capsys.readouterr().out
    assert printed.count("left out for their strikes: client 3") == 5
    page = (tmp_path / "report.html").read_text()
    failures = page[page.index(">Failures</h2>") : page.index(">Rounds</h2>")]
    assert "Round 2: client 3 failed in 2 rounds in a row and is left out up to" in failures
    assert page.count("in a row") == 3, "and nowhere else"
    assert page.count("<td>client 3</td>") + page.count(">client 3<") >= 5
    assert [row["left_out"] for row in seen.rows] == [
        (3,) if i in (2, 3, 5, 6, 8) else None for i in range(9)
    ]
    assert [3 in cohort for cohort in cohorts(seen)] == [1, 1, 0, 0, 1, 0, 0, 1, 0]
    said = [row["notices"] for row in seen.rows]
    assert said[1] == ["client 3 failed in 2 rounds in a row and is left out up to round 4"]
    assert [i for i, each in enumerate(said) if each] == [1, 4, 7]
    assert all(len(cohort) >= 4 for cohort in cohorts(seen))


@pytest.mark.slow
def test_who_answers_again_begins_anew(lied):
    lied(3, fails, range(2, 3))
    seen = federate(tiny(**KEYS, strikes=2))
    assert all(3 in cohort for cohort in cohorts(seen))
    assert seen.state.book.strikes == {}
    plain = federate(tiny(**KEYS))
    assert seen.rows[3]["weights_digest"] == plain.rows[3]["weights_digest"]


@pytest.mark.slow
def test_strikes_and_norms_come_back_after_a_kill(lied, tmp_path):
    keys = {**KEYS, "rounds": 6, "strikes": 2, "max_norm": "auto"}
    lied(3, fails)
    whole = federate(tiny(**keys, out=str(tmp_path / "a")), folder=tmp_path / "a")

    def stop(row: Row, _seconds: float, _state: State) -> None:
        if row["round"] == 4:
            raise KeyboardInterrupt

    config = tiny(**keys, out=str(tmp_path / "b"))
    with pytest.raises(KeyboardInterrupt):
        federate(config, folder=tmp_path / "b", watch=Watch(row=stop))
    again = federate(config, folder=tmp_path / "b", resume=True)
    assert again.state.book.strikes == whole.state.book.strikes
    assert again.state.book.norms == whole.state.book.norms
    assert again.rows[-1]["weights_digest"] == whole.rows[-1]["weights_digest"]
    assert cohorts(again) == cohorts(whole)


@pytest.mark.parametrize(
    ("strikes", "resting", "asked", "wanted"),
    [
        ({}, {}, {1, 2}, {}),
        ({1: 1, 2: 2, 9: 1}, {}, {1, 2}, {9: 1}),  # who was not asked keeps its strikes
        ({}, {7: 5}, {1}, {}),
    ],
)
def test_strikes_without_failures(strikes, resting, asked, wanted):
    config = configure({"task": "digits", "strikes": 2})
    book = Book(strikes=dict(strikes), resting=dict(resting))
    state = State(5, Model({}, {}), book)
    after = struck(state, config, asked, ())
    assert after.strikes == wanted
    assert after.resting == {}


def test_what_is_not_a_clients_own_failure_is_no_strike():
    """That another node announced its partition, and that a model gives nobody numbers."""
    config = configure({"task": "digits", "strikes": 1})
    nan = [Failure(p, "tune", "w", "NaN or infinite") for p in (1, 2)]
    lost = [Failure(p, "evaluate", "loss", "nan is not finite") for p in (1, 2, 3)]
    own = Failure(2, "score", "", "no reply within 2 s")
    joined = Failure(3, "hello", "data", "no *.npz there")

    def out(*failures: Failure) -> set[int]:
        state = State(5, Model({}, {}), Book(failures=failures))
        return set(struck(state, config, {1, 2}, {1, 2, 3}).resting)

    assert out(*nan, *lost, joined) == set()
    assert out(*nan, *lost, joined, own) == {2}
    assert out(nan[0], lost[2], joined) == {1, 3}, "where the others have numbers"
