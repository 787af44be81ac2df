"""The book: written before the release, never forgetting, never falling."""

import itertools
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedprune.options.refusal import ConfigError
from fedprune.privacy.ledger import AccountingTerms, Ledger, Spent, open_ledger
from fedprune.privacy.ledger_file import END_NAME, LEDGER_NAME, read_ledger
from fedprune.privacy.release import Occasion, Release
from fedprune.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
TERMS = AccountingTerms(dp="client", cohort=10, population=10)


def noisy(z=4.0, quantity="changes"):
    return Release(
        quantity, ("values",), unit="client", mechanism="gaussian", clip=1.0, z=z, covered=True
    )


RAW = Release("counts", ("weight",), reason="weights are sent as they are")


def question(round_, order=0, arm="pruned", digest="", partitions=range(10)):
    return Occasion(arm, round_, "tune", order, "cohort", tuple(partitions), 10, digest)


def test_a_line_for_each_release_before_the_caller_goes_on(tmp_path):
    ledger = open_ledger(tmp_path / LEDGER_NAME, TERMS)
    epsilon = ledger.book(question(1, partitions=[0, 1, 2, 5]), [noisy(), RAW])
    first, second = read_ledger(tmp_path / LEDGER_NAME)
    assert (first["quantity"], first["asked"], first["partitions"]) == ("changes", 4, "0-2,5")
    assert (first["sampling"], first["relation"]) == ("fixed 4 of 10", "replace-one")
    assert first["epsilon"] == epsilon == ledger.epsilon
    assert (second["covered"], second["total"]) == (False, "infinity")
    assert ledger.uncovered == ("weights are sent as they are",)
    assert math.isinf(ledger.total)


def test_the_run_stops_before_the_release_that_exceeds_the_budget(tmp_path):
    path = tmp_path / LEDGER_NAME
    ledger = open_ledger(path, AccountingTerms(dp="client", cohort=10, population=10, budget=2.0))
    while ledger.epsilon < 1.7:  # each of them costs about 0.2
        ledger.book(question(len(ledger.lines) + 1), [noisy()])
    before, lines = path.read_text(), len(ledger.lines)
    with pytest.raises(Spent, match=r"epsilon=2: changes of round 99 would bring it to \d\."):
        ledger.book(question(99), [noisy(1.0)])
    assert len(ledger.lines) == lines
    assert path.read_text() == before
    assert 0 < ledger.epsilon <= 2


def test_a_question_that_is_put_again_after_a_kill_is_another_release(tmp_path):
    path = tmp_path / LEDGER_NAME
    ledger = open_ledger(path, TERMS)
    ledger.book(question(1), [noisy()])
    told = ledger.book(question(2, digest="abc"), [noisy()])
    resumed = open_ledger(path, TERMS, resume=True)
    assert resumed.epsilon == told
    assert resumed.times(question(2, digest="abc")) == 1
    twice = resumed.book(question(2, digest="abc"), [noisy()])
    assert twice > told
    assert len(read_ledger(path)) == 3
    assert resumed.times(question(2, digest="abc")) == 2
    assert resumed.book(question(2, digest="another"), [noisy()]) > twice


KILLED = """
import os, signal
from pathlib import Path
from tests.privacy.test_ledger import TERMS, noisy, open_ledger, question

ledger = open_ledger(Path({path!r}), TERMS)
ledger.book(question(1), [noisy()])
ledger.book(question(2), [noisy(1.0)])
os.kill(os.getpid(), signal.SIGKILL)
print("released")
"""


@pytest.mark.slow
def test_after_a_real_kill_between_writing_and_asking_epsilon_is_not_lower(tmp_path):
    path = tmp_path / LEDGER_NAME
    code = KILLED.format(path=str(path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    unbroken = open_ledger(None, TERMS)
    unbroken.book(question(1), [noisy()])
    told = unbroken.book(question(2), [noisy(1.0)])
    assert open_ledger(path, TERMS, resume=True).epsilon == told


def test_secret_noise_makes_another_release_of_the_same_question(tmp_path):
    terms = AccountingTerms(dp="client", cohort=10, population=10, noise_source="secret")
    open_ledger(tmp_path / LEDGER_NAME, terms).book(question(1), [noisy()])
    resumed = open_ledger(tmp_path / LEDGER_NAME, terms, resume=True)
    assert resumed.book(question(1), [noisy()]) > open_ledger(None, terms).book(
        question(1), [noisy()]
    )


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_last_line_that_was_cut_short_was_never_released(tmp_path, cut):
    path = tmp_path / LEDGER_NAME
    ledger = open_ledger(path, TERMS)
    told = ledger.book(question(1), [noisy()])
    whole, end = path.read_bytes(), (tmp_path / END_NAME).read_bytes()
    ledger.book(question(2), [noisy()])
    path.write_bytes(path.read_bytes()[:-cut])
    (tmp_path / END_NAME).write_bytes(end)  # it is written after the lines
    resumed = open_ledger(path, TERMS, resume=True)
    assert resumed.epsilon == told
    assert path.read_bytes() == whole
    resumed.book(question(2), [noisy()])
    assert [json.loads(x)["round"] for x in path.read_text().splitlines()] == [1, 2]


def test_lines_written_just_before_a_kill_count(tmp_path):
    path = tmp_path / LEDGER_NAME
    ledger = open_ledger(path, TERMS)
    ledger.book(question(1), [noisy()])
    end = (tmp_path / END_NAME).read_bytes()
    told = ledger.book(question(2), [noisy()])
    (tmp_path / END_NAME).write_bytes(end)
    assert open_ledger(path, TERMS, resume=True).epsilon == told


def changed(lines):
    return [lines[0].replace('"order": 0', '"order": 1'), *lines[1:]]


HARM = {
    "taken away": None,
    "shortened": lambda lines: lines[:-1],
    "emptied": lambda _: [],
    "a line out of the middle": lambda lines: [lines[0], lines[2]],
    "lines swapped": lambda lines: [lines[1], lines[0], lines[2]],
    "a number changed": changed,
    "no json": lambda lines: [lines[0], "{\n", lines[2]],
}


@pytest.mark.parametrize("name", HARM)
def test_a_ledger_that_was_changed_is_refused(tmp_path, name):
    path = tmp_path / LEDGER_NAME
    ledger = open_ledger(path, TERMS)
    for round_ in (1, 2, 3):
        ledger.book(question(round_), [noisy()])
    if HARM[name] is None:
        path.unlink()
    else:
        path.write_text("".join(HARM[name](path.read_text().splitlines(keepends=True))))
    with pytest.raises(ConfigError, match=r"privacy\.jsonl"):
        open_ledger(path, TERMS, resume=True)


@pytest.mark.parametrize("text", [None, "", "{}", '{"lines": 1}', '{"lines": 9, "chain": ""}'])
def test_a_ledger_whose_end_is_not_known_is_refused(tmp_path, text):
    path = tmp_path / LEDGER_NAME
    open_ledger(path, TERMS).book(question(1), [noisy()])
    end = tmp_path / END_NAME
    end.unlink() if text is None else end.write_text(text)
    with pytest.raises(ConfigError, match=r"privacy\."):
        open_ledger(path, TERMS, resume=True)


def test_another_runs_ledger_is_not_written_into(tmp_path):
    open_ledger(tmp_path / LEDGER_NAME, TERMS).book(question(1), [noisy()])
    with pytest.raises(ConfigError, match="holds a run's releases"):
        open_ledger(tmp_path / LEDGER_NAME, TERMS)


def test_without_protection_the_total_is_infinite_and_nothing_needs_an_accountant():
    ledger = Ledger(AccountingTerms())
    assert ledger.book(question(1), [RAW]) == 0.0
    closing = ledger.closing()
    assert closing["total"] == closing["epsilon"] == "infinity"
    assert closing["pld"] is None
    assert closing["reasons"] == ["weights are sent as they are"]


def test_a_number_that_is_none_is_no_noise():
    with pytest.raises(ValueError, match="z=nan"):
        noisy(math.nan)
    with pytest.raises(ValueError, match="z=None"):
        noisy(None)


def test_a_kill_at_the_first_line_leaves_a_ledger_to_go_on_from(tmp_path, monkeypatch):
    path, name = tmp_path / LEDGER_NAME, "fedprune.privacy.ledger_file.write_atomically"
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
