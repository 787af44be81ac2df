"""The book: written before the release, never forgetting, never falling."""

import itertools
import json
import math
import os
import signal
from dataclasses import replace

import pytest

from fedprune.options.refusal import ConfigError
from fedprune.privacy.ledger import AccountingTerms, Ledger, Spent, open_ledger
from fedprune.privacy.ledger_file import END_NAME, LEDGER_NAME, read_ledger
from fedprune.runtime.files import write_atomically
from tests.privacy import booking
from tests.privacy.booking import RAW, noisy

TERMS = AccountingTerms(dp="client", cohort=10, population=10)


def question(round_, digest="", partitions=range(10)):
    return booking.question(round_, partitions, 10, digest=digest)


@pytest.fixture
def path(tmp_path):
    return tmp_path / LEDGER_NAME


def booked(path, *rounds, terms=TERMS):
    """A ledger with a release of each of these rounds."""
    ledger = open_ledger(path, terms)
    for round_ in rounds:
        ledger.book(question(round_), [noisy()])
    return ledger


def test_a_line_for_each_release_before_the_caller_goes_on(path):
    ledger = open_ledger(path, TERMS)
    epsilon = ledger.book(question(1, partitions=[0, 1, 2, 5]), [noisy(), RAW])
    first, second = read_ledger(path)
    assert (first["quantity"], first["asked"], first["partitions"]) == ("changes", 4, "0-2,5")
    assert (first["sampling"], first["relation"]) == ("fixed 4 of 10", "replace-one")
    assert first["epsilon"] == epsilon == ledger.epsilon
    assert (second["covered"], second["total"]) == (False, "infinity")
    assert ledger.uncovered == ("weights are sent as they are",)
    assert math.isinf(ledger.total)
    with pytest.raises(ConfigError, match="holds a run's releases"):
        open_ledger(path, TERMS)


def test_the_run_stops_before_the_release_that_exceeds_the_budget(path):
    ledger = open_ledger(path, replace(TERMS, budget=2.0))
    while ledger.epsilon < 1.7:  # each of them costs about 0.2
        ledger.book(question(len(ledger.lines) + 1), [noisy()])
    before, lines = path.read_text(), len(ledger.lines)
    with pytest.raises(Spent, match=r"epsilon=2: changes of round 99 would bring it to \d\."):
        ledger.book(question(99), [noisy(1.0)])
    assert (len(ledger.lines), path.read_text()) == (lines, before)
    assert 0 < ledger.epsilon <= 2


def test_a_question_that_is_put_again_after_a_kill_is_another_release(path):
    asked = question(2, digest="abc")
    told = booked(path, 1).book(asked, [noisy()])
    resumed = open_ledger(path, TERMS, resume=True)
    assert (resumed.epsilon, resumed.times(asked)) == (told, 1)
    twice = resumed.book(asked, [noisy()])
    assert twice > told
    assert (len(read_ledger(path)), resumed.times(asked)) == (3, 2)
    assert resumed.book(question(2, digest="another"), [noisy()]) > twice


@pytest.mark.parametrize("noise_source", ["seeded", "secret"])
def test_the_same_question_again_costs_more_whatever_its_noise_is(path, noise_source):
    terms = replace(TERMS, noise_source=noise_source)
    once = booked(path, 1, terms=terms).epsilon
    assert open_ledger(path, terms, resume=True).book(question(1), [noisy()]) > once


def test_after_a_real_kill_between_writing_and_asking_epsilon_is_not_lower(path):
    if (child := os.fork()) == 0:
        booked(path, 1, 2)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert open_ledger(path, TERMS, resume=True).epsilon == booked(None, 1, 2).epsilon > 0


@pytest.mark.parametrize("cut", [0, 1, 5, 100])
def test_a_last_line_that_was_cut_short_was_never_released_and_a_whole_one_counts(path, cut):
    ledger = booked(path, 1)
    told, whole = ledger.epsilon, path.read_bytes()
    end = path.with_name(END_NAME)
    before = end.read_bytes()  # it is written after the lines
    twice = ledger.book(question(2), [noisy()])
    path.write_bytes(path.read_bytes()[: -cut or None])
    end.write_bytes(before)
    resumed = open_ledger(path, TERMS, resume=True)
    assert resumed.epsilon == (told if cut else twice)
    if cut:
        assert path.read_bytes() == whole
        resumed.book(question(2), [noisy()])
    assert [json.loads(x)["round"] for x in path.read_text().splitlines()] == [1, 2]


HARM = {
    "taken away": None,
    "shortened": lambda lines: lines[:-1],
    "emptied": lambda _: [],
    "a line out of the middle": lambda lines: [lines[0], lines[2]],
    "lines swapped": lambda lines: [lines[1], lines[0], lines[2]],
    "a number changed": lambda x: [x[0].replace('"order": 0', '"order": 1'), *x[1:]],
    "no json": lambda lines: [lines[0], "{\n", lines[2]],
}


@pytest.mark.parametrize("name", HARM)
def test_a_ledger_that_was_changed_is_refused(path, name):
    booked(path, 1, 2, 3)
    if HARM[name] is None:
        path.unlink()
    else:
        path.write_text("".join(HARM[name](path.read_text().splitlines(keepends=True))))
    with pytest.raises(ConfigError, match=r"privacy\.jsonl"):
        open_ledger(path, TERMS, resume=True)


@pytest.mark.parametrize("text", [None, "", "{}", '{"lines": 1}', '{"lines": 9, "chain": ""}'])
def test_a_ledger_whose_end_is_not_known_is_refused(path, text):
    booked(path, 1)
    end = path.with_name(END_NAME)
    end.unlink() if text is None else end.write_text(text)
    with pytest.raises(ConfigError, match=r"privacy\."):
        open_ledger(path, TERMS, resume=True)


def test_without_protection_the_total_is_infinite_and_nothing_needs_an_accountant():
    ledger = Ledger(AccountingTerms())
    assert ledger.book(question(1), [RAW]) == 0.0
    closing = ledger.closing()
    assert closing["total"] == closing["epsilon"] == "infinity"
    assert closing["pld"] is None
    assert closing["reasons"] == ["weights are sent as they are"]


def test_a_number_that_is_none_is_no_noise():
    for number in (math.nan, None):
        with pytest.raises(ValueError, match=f"z={number}"):
            noisy(number)


def test_a_kill_at_the_first_line_leaves_a_ledger_to_go_on_from(path, monkeypatch):
    name = "fedprune.privacy.ledger_file.write_atomically"
    for written in (1, 0):  # of the two times that the end is written with the first lines
        calls = itertools.count()

        def until(target, content, after=written, calls=calls):
            if next(calls) == after:
                raise KeyboardInterrupt
            write_atomically(target, content)

        with monkeypatch.context() as patch:
            patch.setattr(name, until)
            with pytest.raises(KeyboardInterrupt):
                open_ledger(path, TERMS, resume=True).book(question(1), [noisy()])
        ledger = open_ledger(path, TERMS, resume=True)
        assert [line["quantity"] for line in ledger.lines] == ["changes"] * (2 - written)
