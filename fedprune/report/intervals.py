"""95 % intervals of what was measured on test, as words of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedprune.report.reading import NO_VALUE, SPACE, Run, metric_text, percent, significant
from fedprune.tasks.measures import metric_of

PERCENT = f"{SPACE}%"

_CLIENTS = (
    " Intervals are of 200 resamples of the clients, each with all its examples (bootstrap); "
    "of few clients they are too narrow, and another seed may differ by more."
)
"""What is said of intervals that a run's summary has."""


def has_interval(run: Run, column: str) -> bool:
    """Whether a column of quality has intervals beside it."""
    found = run.summary.get("intervals") or {}
    return any(column in each for each in found.values()) or (not found and _of_right(run, column))


def interval_words(run: Run, name: str, column: str) -> str:
    """The interval of one figure of an entry of summary["quality"]; a dash where there is none."""
    given = run.summary.get("intervals") or {}
    if given:
        low, high = (given.get(name) or {}).get(column) or (math.nan, math.nan)
        return NO_VALUE if math.isnan(low) else _between(column, low, high)
    found = (run.summary.get("quality") or {}).get(name) or {}
    return wilson_words(found.get(column, math.nan), found.get("count", 0))


def interval_sentence(run: Run, columns: Sequence[str]) -> str:
    """What the intervals of these columns are of, and why there are none where there are none."""
    if run.summary.get("intervals"):
        return _CLIENTS
    if spread := noise_on_measures(run):
        return (
            f" Noise of standard deviation {significant(spread)} is in every mean, so that no "
            f"client shows: differences below {significant(_APART * spread)} may be noise alone, "
            "and there are no intervals."
        )
    unit = run.summary.get("unit") or "examples"
    wilson = any(has_interval(run, column) for column in columns)
    words = f" Intervals are Wilson's, of {unit} drawn anew; another seed may differ by more."
    none = "The other figures have no interval" if wilson else "There are no intervals"
    return f"{words * wilson} {none}: {_why_none(run)}."


_APART = 2.77
"""Standard deviations by which two figures with noise on each differ once in twenty times."""


def noise_on_measures(run: Run) -> float:
    """The standard deviation of the noise on every mean that was measured; 0.0 without noise."""
    return float((run.summary.get("privacy") or {}).get("metrics_sd") or 0.0)


def _why_none(run: Run) -> str:
    if run.config.get("secure", "none") != "none":
        return f"{_NEEDS}, which secure sums hide"
    if run.config.get("dp", "none") != "none":
        return f"{_NEEDS}, and with --dp no client shows its own figures"
    return f"{_NEEDS}, and fewer than two were measured"


_NEEDS = "that needs to know how far clients differ"


def _of_right(run: Run, column: str) -> bool:
    """Whether a column is the share of what is either right or wrong, counted without noise."""
    return column == metric_of(run.metric).correct and not noise_on_measures(run)


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
