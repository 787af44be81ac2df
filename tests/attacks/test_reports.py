"""Sections hold every case and column, chance beside them, and figures of every trial."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedprune.attacks import image_report, label_report, portrait_report, text_report
from fedprune.attacks.exposed import CHANCE
from fedprune.attacks.page import Passage
from fedprune.report.reading import NO_VALUE

Findings = tuple[list[Passage], dict[str, Any]]


def checked(findings: Callable[..., Findings], *given: Any) -> list[Passage]:
    """The sections, whose rows are as long as their heads; the work said how far it was."""
    ticks: list[int] = []
    sections, figures = findings(*given, lambda: ticks.append(1))
    json.dumps(figures)
    assert ticks
    tables = [section.table for section in sections if section.table is not None]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    return sections


def few(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, *kept: str) -> None:
    table = vars(module)[name]
    monkeypatch.setattr(module, name, {key: table[key] for key in kept})


@pytest.mark.slow
def test_images_in_closed_form(monkeypatch):
    few(monkeypatch, image_report, "IMAGE_CASES", "|g|", "|g|, 80 % pruned", "Σx²")
    error, label = checked(image_report.closed_form_findings, [0], [10.0])
    assert error.table.columns[:3] == ["quantity", "plain", "clipped"]
    assert [row[1] for row in error.table.rows] == ["exact"] * 3
    assert CHANCE in error.table.columns
    assert len(error.pictures) == 1
    assert label.table.rows[0][1] == "100 %"
    assert [row[0] for row in label.table.rows] == ["|g|", "|g|, 80 % pruned"]


def test_images_by_search(monkeypatch):
    few(monkeypatch, image_report, "MATCHED", "g")
    (section,) = checked(image_report.search_findings, [0], [10.0], 3)
    assert section.table.columns == ["quantity", "plain", "sum of 4", "epsilon 10", CHANCE]


@pytest.mark.slow
def test_labels(monkeypatch):
    few(monkeypatch, label_report, "LABEL_CASES", "change", "g², with head")
    monkeypatch.setattr(label_report, "_SIZES", (32,))
    shares, dominant = checked(label_report.label_findings, [0], [10.0])
    assert all(float(row[1].split()[0]) > 0.9 for row in shares.table.rows)
    assert dominant.table is not None


@pytest.mark.slow
def test_texts(monkeypatch):
    """Reading 38 plays takes seconds."""
    few(monkeypatch, text_report, "TEXT_CASES", "change", "Σx²")
    which, listed, order = checked(text_report.text_findings, [0], [10.0], 2)
    assert [row[1] for row in which.table.rows] == ["100 %"] * 2
    assert order.table is not None
    assert len(listed.table.rows) == 2


@pytest.mark.slow
def test_models(monkeypatch):
    few(monkeypatch, portrait_report, "_MODELS", "untrained")
    (section,) = checked(portrait_report.portrait_findings, [0])
    assert section.table.rows[0][3] == NO_VALUE  # nobody measured the untrained model


@pytest.mark.parametrize(
    "cases", [image_report.IMAGE_CASES, label_report.LABEL_CASES, text_report.TEXT_CASES]
)
def test_every_quantity_is_attacked_or_said_not_to_be(cases):
    missing = image_report.QUANTITIES.keys() - {case[0] for case in cases.values()}
    assert missing <= {"Σx²"}
    assert not missing or "Σ x²" in " ".join(label_report.TEXT)
