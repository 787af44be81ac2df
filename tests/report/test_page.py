import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedprune.report.intervals import wilson_words
from fedprune.report.page import write_report
from fedprune.report.pictures import OVER_ROUNDS, pictures
from fedprune.report.plots import quality_figure, shown_range
from fedprune.report.reading import Run, read_run, significant
from fedprune.report.script import SCRIPT
from fedprune.report.sentences import facts, result_sentence, title, what_was_run
from fedprune.report.tables import (
    FAILURES_SHOWN,
    change_cell,
    failure_table,
    flat_table,
    quality_table,
    results,
)
from fedprune.report.template import _CONTENTS, with_contents
from fedprune.report.unpruned import shown_names
from tests.report.pages import made_up, write_page


class Reader(HTMLParser):
    """The words of a page and the tags with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] != "script":
            self.words += data.replace("\u00a0", " ")


def read(folder: Path) -> Reader:
    return Reader(write_page(folder).read_text("utf-8"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run with both baselines, and its page."""
    folder = made_up(tmp_path_factory.mktemp("usual"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedprune.report.reading.check_sums", lambda _: None)
        return read_run(folder), write_page(folder).read_text("utf-8")


def test_the_page_tells_the_run(usual):
    words = Reader(usual[1]).words
    assert "The earlier task" not in words
    assert re.search(r"Failures\s+None\.", words)
    for told in (
        "shakespeare, 80.0 % pruned",
        "20 clients trained LlamaForCausalLM of 110,912 parameters",
        "1,250 to 1,953 training tokens each",
        "ends at a test perplexity of 8.56, better than the dense model's 10.9 when pruning began",
        "Baselines of the same budget: dense 5.74, random 11.8.",
        "19,661 of 98,304",
        "31.7 % of 446 kB dense",
        "61.5 % of 49.2 MB for dense FedAvg",
        "python simulations/run.py --resume runs/shakespeare-20",
    ):
        assert told in words, told


def test_the_page_tells_the_earlier_task_before_and_after(make_run):
    told = {"run": "runs/<one>", "task": "bbc", "then": {"loss": 1.5, "accuracy": 0.5}}
    for now, said in (
        ({"now": {"loss": 2.0, "accuracy": 0.25}}, "this model is at loss 2.00, accuracy 25.0 %."),
        ({"now": None, "why": "no <data>"}, "this model was not measured: no <data>."),
    ):
        words = " ".join(read(make_run(before={**told, **now})).words.split())
        assert "bbc of runs/<one>, on its own test split: that run ended at loss 1.5" in words
        assert said in words


def test_the_page_shows_every_key_and_every_round(usual):
    page = Reader(usual[1])
    assert all(key in page.words for key in usual[0].config)
    assert sum(tag == "details" for tag, _ in page.tags) == 3 + 2 + 1
    assert page.words.count("4.25 s") == 36


def test_the_page_asks_for_nothing(usual):
    _, text = usual
    tags = {tag for tag, _ in Reader(text).tags}
    assert not tags & {"link", "img", "iframe", "object", "audio", "video", "image"}
    assert re.findall(r"<script.*?</script>", text, re.DOTALL) == [f"<script>{SCRIPT}</script>"]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in text
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_headings_that_differ_in_a_number_or_not_at_all_have_ids_of_their_own():
    page = with_contents(f"{_CONTENTS}<h2>Of 32</h2><h2>Of 200</h2><h2>Of 32</h2>")
    links = re.findall(r'href="#([^"]+)">(.*?)<', page)
    assert [words for _, words in links] == ["Of 32", "Of 200", "Of 32"]
    assert [name for name, _ in links] == re.findall(r'<h2 id="([^"]+)"', page)
    assert len(dict(links)) == 3


def test_every_section_is_in_the_contents(usual):
    tags = Reader(usual[1]).tags
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links == [f"#{attributes['id']}" for tag, attributes in tags if tag == "h2"]
    assert len(links) >= 7


def test_axes_that_leave_rounds_out_begin_with_the_pruning(usual):
    rows = usual[0].rows
    first = min(r["round"] for r in rows if r["arm"] == "pruned" and r["phase"] == "prune")
    assert shown_range(rows, "perplexity")
    assert quality_figure(rows, "perplexity").axes[0].get_xlim()[0] == first - 1


def test_marks_say_what_they_stand_for(usual):
    run, text = usual
    told = [a["data-value"] for tag, a in Reader(text).tags if tag == "use" and "data-value" in a]
    rows = [r for r in run.rows if r["arm"] == "pruned"]
    assert len(told) > len(rows) > 5
    low, high = shown_range(run.rows, "perplexity") or (0.0, math.inf)
    for row in (row for row in rows if low <= row["perplexity"] <= high):
        wanted = f"pruned, round {row['round']}: {significant(row['perplexity'])}"
        assert any(wanted in value for value in told), wanted


@pytest.mark.parametrize("have", [None, "masks", "parts"])
def test_one_mask_is_said_only_where_all_clients_have_it(have):
    config = {"score": "snip", "schedule": "cubic", "scope": "global"}
    summary = {"sparsity": 0.8} | ({"clients_have": have} if have else {})
    text = what_was_run(Run(config, [], {}, summary))
    assert ("one mask for all clients" in text) == (have is None)
    assert have is None or f"each client with a {have.removesuffix('s')} of" in text


def test_a_run_that_prunes_nothing_calls_nothing_pruned(make_run):
    pruned = read_run(make_run(arms=("pruned",)))
    told = pruned.summary
    whole = [{**layer, "kept": layer["total"]} for layer in told["layers"]]
    told |= {"sparsity": 0.0, "kept_parameters": told["prunable_parameters"], "layers": whole}
    told["quality"]["dense_at_pruning"] = None
    rows = [{**row, "sparsity": 0.0} for row in pruned.rows]
    run = shown_names(replace(pruned, rows=rows))
    made = pictures(run)
    assert made["sparsity"].figure is made["layers"].figure is None
    said = " ".join([result_sentence(run), *results(run).values(), made["quality"].finding])
    assert "The trained model ends" in said
    assert "pruned" not in said
    assert "pruning" not in said
    by_clients = replace(run, summary={**told, "own_sparsity": 0.5})
    rows = shown_names(replace(by_clients, rows=pruned.rows)).rows
    assert {row["arm"] for row in rows} == {"averaged"}, "the mean of models that clients pruned"
    assert "50.0" in title(by_clients)


def test_a_run_of_one_round_in_which_nobody_trains_says_so_and_draws_no_curve(make_run):
    run = read_run(make_run(arms=("pruned",)))
    summary = {**run.summary, "bytes_dense": 0, "rounds_completed": 1}
    row = {**run.rows[-1], "round": 1, "bytes_dense": 0, "removed": 8}
    config = {"local-steps": 0, "local-epochs": 0, "schedule": "one-shot", "scope": "row"}
    once = replace(run, summary=summary, rows=[row], config={**run.config, **config})
    made = pictures(once)
    assert not [name for name in OVER_ROUNDS & made.keys() if made[name].figure]
    assert made["layers"].figure is not None
    said = " ".join(
        [what_was_run(once), *(p.finding for p in made.values()), *sum(facts(once), ())]
    )
    assert "no client trained" in said
    assert "Weights were removed in round 1" in said
    assert "nobody trained" in said
    for wrong in ("then tuned", "clients trained", "of 0 B", "of the 0 B"):
        assert wrong not in said


def test_intervals_are_those_of_statsmodels_definition():
    """Wilson's bounds solve (p - share)² = z²·p(1 - p)/n."""
    for share, count in ((0.41, 178), (0.0, 10), (1.0, 7), (0.5, 1)):
        low, high = (
            float(x.strip("\u00a0%")) / 100 for x in wilson_words(share, count).split(" to ")
        )
        for bound in (low, high):
            left, right = (bound - share) ** 2, 3.841459 * bound * (1 - bound) / count
            assert left == pytest.approx(right, abs=2e-3)
        assert low <= share <= high


def test_ids_are_unique_and_figures_have_words(usual):
    tags = Reader(usual[1]).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [attributes.get("aria-label") for tag, attributes in tags if tag == "svg"]
    assert len(labels) == 5
    assert all(label and re.search(r"\d", label) for label in labels)


@pytest.mark.slow
def test_what_clients_wrote_is_only_ever_text(failed_run):
    page = read(failed_run)
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == 1
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>?" in page.words
    assert "2 answers were refused or missing" in page.words


@pytest.mark.slow
def test_failures_are_bounded_in_number_and_length(make_run):
    failure = {"partition": 1, "phase": "tune", "field": None, "reason": "x" * 5000}
    folder = make_run(failures=(failure,) * (FAILURES_SHOWN + 5))
    table = failure_table(read_run(folder))
    assert len(table.rows) == FAILURES_SHOWN
    assert max(len(cell) for row in table.rows for cell in row) < 400
    assert f"The first {FAILURES_SHOWN} are shown" in read(folder).words


def test_a_run_that_completed_nothing_has_a_page(empty_run):
    words = read(empty_run).words
    assert "nothing pruned" in words
    assert "No model was measured on the test split." in words
    assert "nan" not in words.lower()
    assert "None of" not in words


def test_a_run_that_has_not_ended_says_what_is_known_in_whole_sentences(make_run):
    folder = make_run()
    (folder / "summary.json").unlink()
    (folder / "config.toml").write_text('task = "digits"\nclients = 20\ncohort = 5\n')
    words = read(folder).words
    assert "20 clients train on the task digits. This is the state so far." in words
    assert "of them in each round" not in words
    assert "78,643 in all" in words
    assert "\u2013 in all" not in words
    assert "It is known when the run has ended." in words


def test_an_empty_folder_has_a_page(tmp_path):
    write_report(tmp_path)
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["perplexity", "accuracy"])
def test_without_a_dense_model_nothing_is_compared(make_run, metric):
    folder = make_run(arms=("pruned",), metric=metric)
    quality = read_run(folder).summary["quality"] | {"dense_at_pruning": None}
    make_run(arms=("pruned",), metric=metric, quality=quality)
    assert "no dense model measured when pruning began" in read(folder).words
    table = quality_table(read_run(folder))
    assert [row[0] for row in table.rows] == ["pruned, at the end", "label frequencies alone"]
    since = table.columns.index("since pruning began")
    assert [row[since] for row in table.rows] == ["\u2013"] * 2


@pytest.mark.slow
def test_higher_accuracy_is_better(make_run):
    words = read(make_run(metric="accuracy")).words
    assert "ends at a test accuracy of 57.0 %, better than" in words
    assert "Higher is better." in words


def test_change_has_its_sign():
    told = [change_cell("perplexity", 8.0, 10.0), change_cell("perplexity", 11.0, 10.0)]
    told += [change_cell("accuracy", 0.9, 0.95), change_cell("loss", 1.0, float("nan"))]
    flat_told = [text.replace("\u00a0", " ") for text in told]
    assert flat_told == ["\u221220.0 %", "+10.0 %", "\u22125.00 points", "\u2013"]


def test_nested_configuration_has_dotted_keys():
    config = {"a": 1, "b": {"c": [1, 2], "d": {"e": ""}}}
    assert flat_table(config) == [["a", "1"], ["b.c", "1, 2"], ["b.d.e", "(empty)"]]


@pytest.mark.slow
def test_the_report_is_all_of_it_and_the_same_again(failed_run):
    write_report(failed_run)
    first = (failed_run / "report.html").read_bytes()
    write_report(failed_run)
    assert (failed_run / "report.html").read_bytes() == first
    assert len(list((failed_run / "plots").glob("*.png"))) == 5
