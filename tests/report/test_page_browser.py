"""The page in headless Chromium: wide and narrow, light and dark."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedprune.attacks.membership_report import curves
from fedprune.attacks.page import Passage, Picture, Table, write_findings
from fedprune.attacks.pictures import tiles
from fedprune.report.reading import read_run
from fedprune.study.design import factors_of
from fedprune.study.outcomes import StudyOutcome
from fedprune.study.page import write_study
from fedprune.study.pictures import Collected
from tests.report.pages import write_page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--no-first-run", "--disable-quic"]
CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (ink) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  const texts = [...document.querySelectorAll('svg text, p, td, th, dt, dd, h1, h2, h3')];
  return Math.min(...texts.map(e => getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color'])
    .map(light).map(ratio));
}"""
UNFOLD = "document.querySelectorAll('details').forEach(part => part.open = true)"
STAYS = """() => [...document.querySelectorAll('.scroll')].map(part => {
  part.scrollLeft = part.scrollWidth;
  const [cell, whole] = [part.querySelector('td'), part].map(e => e.getBoundingClientRect());
  part.scrollLeft = 0;
  return Math.abs(cell.left - whole.left);
})"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium (Debian package) is not installed"),
]


@dataclass
class View:
    """An open page and everything that it said, asked for or raised."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


def look(browser: Any, path: Path) -> View:
    """Open the page with all its parts unfolded."""
    page = browser.new_page()
    view = View(page)
    page.on("console", lambda message: view.said.append(message.text))
    page.on("pageerror", lambda error: view.said.append(str(error)))
    page.on("dialog", lambda dialog: (view.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: view.asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate(UNFOLD)
    return view


LIGHTS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


def checked(browser: Any, path: Path, figures: int, lights: Any = tuple(LIGHTS)) -> View:
    """The laws of every page, at any width in any light."""
    view = look(browser, path)
    for width, scheme in lights:
        view.page.set_viewport_size({"width": width, "height": 844})
        view.page.emulate_media(color_scheme=scheme)
        view.asked.clear()
        view.page.reload()
        view.page.evaluate(UNFOLD)
        check(view, path, figures)
    return view


def check(view: View, path: Path, figures: int) -> None:
    page = view.page
    assert view.said == []
    assert view.asked == [path.as_uri()]
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 0
    assert page.locator("figure").count() == figures
    for figure in page.locator("figure").all():
        words, drawing = figure.locator("figcaption p"), figure.locator("svg")
        assert words.is_visible()
        assert any(character.isdigit() for character in words.inner_text())
        assert words.inner_text() in drawing.get_attribute("aria-label")
        assert drawing.bounding_box()["width"] > 300
    assert page.evaluate(CONTRAST) >= 4.5
    assert max(page.evaluate(STAYS), default=0) < 1  # the first column, as a table scrolls
    assert page.locator("script").count() == 1


def test_the_page_of_a_run(browser, failed_run):
    view = checked(browser, write_page(failed_run), figures=5)
    assert "<script>alert(1)</script>" in view.page.locator("td.reason").last.inner_text()
    view.page.close()


def test_a_deep_model_and_an_empty_run_on_a_phone(browser, make_run, empty_run):
    empty = write_page(empty_run)
    checked(browser, empty, 0, LIGHTS[3:]).page.close()
    deep = write_page(make_run(arms=("pruned",), metric="accuracy", blocks=33))
    checked(browser, deep, 5, LIGHTS[2:3]).page.close()


def test_a_page_of_attacks(browser, tmp_path):
    image = torch.linspace(0, 1, 64).reshape(8, 8)
    sides = {"LiRA": (np.linspace(0, 1, 50), np.linspace(-1, 0.5, 40))}
    table = Table([f"column {i}" for i in range(9)], [["0.123 ± 0.456, 10 dB"] * 9])
    pictures = (
        Picture("a", "Curves", "Of 50 and 40.", curves(sides)),
        Picture("b", "Images", "Of 64 pixels.", tiles(["x"] * 11, [("|g|", [image] * 11)])),
    )
    passage = Passage("Found", ("Words.",), table, pictures)
    path = write_findings(tmp_path / "page.html", "What leaks", ["About."], [passage], "x " * 99)
    checked(browser, path, figures=2).page.close()


def test_a_page_of_a_study(browser, make_run, tmp_path):
    runs = [make_run(arms=("pruned",)) for _ in range(4)]
    labels = [{"score": s, "seed": i} for s in ("a_score_of_a_long_name", "b") for i in "01"]
    outcomes = [
        StudyOutcome(f"{i}", its, folder, read_run(folder))
        for i, (its, folder) in enumerate(zip(labels, runs, strict=True))
    ]
    levels = {"score": ("a_score_of_a_long_name", "b"), "seed": ("0", "1")}
    collected = Collected("Study", factors_of(levels, {}), outcomes, "fedprune study x --out y")
    path = write_study(tmp_path / "study", collected)
    view = checked(browser, path, figures=2)
    words = view.page.locator("header").inner_text()
    assert "Score compared on the task shakespeare: a_score_of_a_long_name, b. 4 runs" in words
    view.page.close()


def test_values_under_the_pointer_and_tables_in_order(browser, make_run):
    view = look(browser, write_page(make_run(blocks=3)))
    mark = view.page.locator("#quality [data-value]").last
    box = mark.bounding_box()
    view.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert view.page.locator(".tip").inner_text() in mark.get_attribute("data-value")
    head = view.page.locator(".sortable th").nth(2)
    shown = "[...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[2].innerText)"
    for down in (False, True):
        head.locator("button").click()
        told = [float(text.replace(",", "").split()[0]) for text in view.page.evaluate(shown)]
        assert told == sorted(told, reverse=down)
    assert view.said == []
    view.page.close()
