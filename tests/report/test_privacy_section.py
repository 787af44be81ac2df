"""The page's section on privacy: epsilon, what left, and the statement."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.ledger import open_ledger
from fedprune.privacy.ledger_file import LEDGER_NAME
from fedprune.privacy.release import Occasion, Release
from fedprune.report.pictures import pictures
from fedprune.report.privacy import privacy_sentences, release_table
from fedprune.report.reading import NO_VALUE, read_run
from tests.report.pages import write_page

Folder = Callable[..., Path]

RAW = Release("counts", ("weight",), reason="weights are <b>as they are</b>")
NOISY = Release(
    "changes", ("values",), "up", "client", "gaussian", 1.0, 2.0, 4.0, coordinates=90, covered=True
)  # fmt: skip


TERMS = AccountingTerms(dp="client", cohort=5, population=20)


@pytest.fixture
def make_booked(make_run) -> Folder:
    def make(terms: AccountingTerms, *releases: Release) -> Path:
        folder = make_run()
        ledger = open_ledger(folder / LEDGER_NAME, terms)
        for arm in ("pruned", "dense"):
            for round_ in range(1, 4):
                asked = tuple(range(5))
                ledger.book(Occasion(arm, round_, "tune", 0, "cohort", asked, 20), releases)
        return make_run(privacy=ledger.closing())

    return make


@pytest.mark.slow
def test_a_private_run_shows_epsilon_the_releases_the_curve_and_the_statement(
    make_booked, make_run
):
    folder = make_booked(TERMS, NOISY)
    run = read_run(folder)
    assert "It covers all that left." in privacy_sentences(run)[0]
    assert "without replacement" in privacy_sentences(run)[0]
    (row,) = release_table(run).rows
    assert row[:5] == ["changes", "up", "6", "client", "gaussian"]
    assert row[5:] == ["1.00", "4.00", "fixed 5 of 20", "90", "yes", NO_VALUE]
    made = pictures(run)
    assert made["epsilon"].figure is not None
    assert "by Rényi divergences" in made["curve"].finding
    html = write_page(folder).read_text("utf-8")
    assert "Who may see what" in html
    assert 'id="epsilon"' in html
    assert "one client&#39;s whole data" in html
    make_run()  # as if it had ended before its summary, which alone has the total
    assert privacy_sentences(read_run(folder))[0].startswith("Epsilon is ")
    assert 'id="epsilon"' in write_page(folder).read_text("utf-8")


@pytest.mark.slow
def test_what_is_not_covered_makes_the_total_infinite_and_its_reason_is_text(make_booked):
    folder = make_booked(TERMS, NOISY, RAW)
    assert "The total is infinite: weights are" in privacy_sentences(read_run(folder))[0]
    html = write_page(folder).read_text("utf-8")
    assert "<b>as they are" not in html
    assert "&lt;b&gt;as they are" in html


@pytest.mark.slow
def test_without_noise_or_a_ledger_the_section_is_short(make_booked, make_run):
    assert "This run kept no ledger" in write_page(make_run()).read_text("utf-8")
    folder = make_booked(AccountingTerms(), RAW)
    run = read_run(folder)
    assert privacy_sentences(run) == ["Epsilon is infinite: nothing that left a client was noised."]
    assert not {"epsilon", "curve"} & pictures(run).keys()
    assert "<details><summary>All that left, 1 kinds" in write_page(folder).read_text("utf-8")
