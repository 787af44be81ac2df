"""95 % intervals of what was measured on test, as words of a table."""

from __future__ import annotations

import math

from fedprune.report.reading import NO_VALUE, SPACE, Run, metric_text, percent
from fedprune.tasks.measures import metric_of

PERCENT = f"{SPACE}%"

CLIENTS = (
    " Intervals are of 200 resamples of the clients, each with all its examples (bootstrap); "
    "of few clients they are too narrow, and another seed may differ by more."
)
"""What is said of intervals that a run's summary has."""


def has_interval(run: Run, column: str) -> bool:
    """Whether a column of quality has intervals beside it."""
    found = (run.summary.get("intervals") or {}).values()
    return any(column in each for each in found) or (column == run.metric and _of_examples(run))


def interval_words(run: Run, name: str, column: str) -> str:
    """The interval of one figure of an entry of summary["quality"]; a dash where there is none."""
    given = run.summary.get("intervals") or {}
    if given:
        low, high = (given.get(name) or {}).get(column) or (math.nan, math.nan)
        return NO_VALUE if math.isnan(low) else _between(column, low, high)
    found = (run.summary.get("quality") or {}).get(name) or {}
    return wilson_words(found.get(column, math.nan), found.get("count", 0))


def interval_sentence(run: Run) -> str:
    """What the intervals are of; "" without any."""
    if run.summary.get("intervals"):
        return CLIENTS
    unit = run.summary.get("unit") or "examples"
    words = f" Intervals are Wilson's, of {unit} drawn anew; another seed may differ by more."
    return words * _of_examples(run)


def _of_examples(run: Run) -> bool:
    """Whether the metric is a share of examples that were right, each right or wrong."""
    return bool(metric_of(run.metric).correct) and metric_of(run.metric).correct == run.metric


def _between(column: str, low: float, high: float) -> str:
    return _range(metric_text(column, low), metric_text(column, high))


def _range(low: str, high: str) -> str:
    """Both ends, the unit once."""
    return f"{low.removesuffix(PERCENT)} to {high}"


def wilson_words(share: float, count: float) -> str:
    """Wilson's 95 % interval of a share of so many examples, drawn independently.

    Wilson 1927, eq. 4, by the form of Brown, Cai and DasGupta 2001 (Statistical Science 16), eq. 4.
    """
    if not count > 0 or math.isnan(share):
        return NO_VALUE
    z = 1.959964  # the normal distribution's 97.5 % quantile
    middle = (share * count + z * z / 2) / (count + z * z)
    half = (
        z * math.sqrt(count) / (count + z * z) * math.sqrt(share * (1 - share) + z * z / count / 4)
    )
    return _range(percent(max(0.0, middle - half)), percent(min(1.0, middle + half)))
