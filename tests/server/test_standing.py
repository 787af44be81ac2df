"""Whose changes count: bounds on norms, models that are not finite, strikes; what sums tell."""

from dataclasses import replace

import pytest
import torch

from fedprune import federate
from fedprune.client import partition_answers
from fedprune.client.answers import answer
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.report.screen import Screen
from fedprune.server.ask import noticed
from fedprune.server.standing import limit_of, struck
from fedprune.server.state import Book, Model, State
from tests.runs import cut_short, played, same, tiny

KEYS = {"model": "mlp", "clients": 5, "cohort": 5, "hosts": 2, "rounds": 4, "local_steps": 1}
KEYS |= {"warmup": 0, "end": 1, "score": "magnitude"}


@pytest.fixture
def lied(monkeypatch):
    """Has a client bend its answers to some questions in some rounds."""

    def by(partition, lie, rounds=range(1, 99)):
        def bent(question, client):
            given = answer(question, client)
            here = client.partition == partition and question.kind == "tune"
            return lie(given) if here and question.round in rounds else given

        monkeypatch.setattr(partition_answers, "answer", bent)

    return by


def times(factor):
    return lambda given: replace(given, values=given.values * factor)


def fails(_):
    raise Refused("battery", "empty")


def named(row):
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
    assert same(federate(tiny(**KEYS)).state.weights, seen.state.weights)


def test_in_a_first_round_the_bound_is_the_rounds_own(lied):
    lied(2, times(1e4))
    seen = federate(tiny(**KEYS, max_norm="auto"))
    assert [[p for p, _ in named(row)] for row in seen.rows] == [[2]] * 4
    assert [row["answered"] for row in seen.rows] == [4] * 4
    assert ["max-norm" in (row["undone"] or "") for row in seen.rows] == [True, False, False, False]
    assert len(seen.state.book.norms) == 16
    assert max(seen.state.book.norms) < 10.0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("limit", [1e6, "auto"])
def test_a_bound_that_all_keep_changes_nothing(limit):
    there, plain = (played(tiny(**KEYS, max_norm=m)) for m in (limit, None))
    assert same(there.state.weights, plain.state.weights)


def test_the_running_median_is_of_what_counted():
    config = configure({"task": "digits", "max_norm": "auto"})
    assert limit_of(config, ()) == 0.0
    assert limit_of(config, (3.0, 1.0, 100.0)) == 15.0
    assert limit_of(configure({"task": "digits", "max_norm": 7}), (1.0,)) == 7.0


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e31, 3e38])
def test_who_would_make_the_model_infinite_is_refused_alone(size, lied):
    lied(1, lambda given: replace(given, values=torch.full_like(given.values, -size)))
    seen = federate(tiny(**KEYS, server_lr=2.0))
    assert [[p for p, _ in named(row)] for row in seen.rows] == [[1]] * 4
    assert seen.state.completed == 4
    lied(1, fails)
    assert same(federate(tiny(**KEYS, server_lr=2.0)).state.weights, seen.state.weights)


def test_a_model_that_is_not_finite_takes_nobodys_place():
    config = tiny(**KEYS)
    port = inline_port(build_host(config))

    def ask(question, partitions):
        aggregate = port.ask(question, partitions)
        if (question.kind, question.round) != ("tune", 2):
            return aggregate
        return replace(aggregate, total=torch.full_like(aggregate.total, 1e60))

    seen = federate(config, replace(port, ask=ask))
    assert [row["undone"] for row in seen.rows][1].endswith("the new model would not be finite")
    assert seen.rows[1]["weights_digest"] == seen.rows[0]["weights_digest"]
    assert all(bool(torch.isfinite(t).all()) for t in seen.state.weights.values())


def cohorts(result):
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

    config = tiny(**keys, out=str(tmp_path / "b"))
    cut_short(config, tmp_path / "b", 4)
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
    config, book = (
        configure({"task": "digits", "strikes": 2}),
        Book(strikes=strikes, resting=resting),
    )
    left = struck(State(5, Model({}, {}), book), config, asked, ())
    assert (left.strikes, left.resting) == (wanted, {})


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


def summed(*clients: int, tries: int = 1) -> Aggregate:
    return Aggregate(torch.zeros(1), 1.0, answered=clients, tries=tries)


def after(*sums: Aggregate) -> Book:
    book = Book()
    for aggregate in sums:
        book = noticed(book, "tune", aggregate)
    return book


def test_sums_that_one_client_tells_apart_are_named_once_where_they_are_secure():
    assert after(summed(0, 1, 2, tries=0), summed(0, 1, tries=0)) == Book()
    book = after(summed(0, 1, 2), summed(0, 1, 2), summed(1, 2), summed(2, 1), summed(0, 1, 2))
    assert book.notices == ("tune: this sum and an earlier one differ by one client alone: 0",)
    assert book.sums == (frozenset({0, 1, 2}), frozenset({1, 2}))

    assert after(summed(0, 1, 2), summed(3, 4), summed(0, 1, 3), summed(0, 1, 2)).notices == ()
    # One between two others names both clients.
    book = after(summed(0, 1, 2), summed(0, 1, 2, 3, 4), summed(0, 1, 2, 4))
    assert book.notices[-1].endswith("one client alone: 3, 4")


def test_a_second_try_is_told_with_how_many_are_in_it():
    told = "tune: the secure sum was tried again, {} clients are in it"
    assert after(summed(0, 4, 5, tries=2)).notices == (told.format(3),)
    book = after(Aggregate(tries=2))
    assert (book.sums, book.notices) == ((), (told.format(0),)), "of no sum nobody is remembered"
