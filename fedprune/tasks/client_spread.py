"""How a quality is spread over clients, from a histogram that they add up.

Each client adds 1 to the bin of its own figure, so that no client's figure is sent by itself and
the counts can be summed securely. A percentile is known to a bin's width.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping

from fedprune.tasks.measures import metric_of

PREFIX = "clients_in_"

_SHARES = tuple(i / 50 for i in range(51))
_LOSSES = (0.0, *(10 ** (i / 40 - 3) for i in range(241)))


def _counts_right(metric: str) -> bool:
    about = metric_of(metric)
    return about.form == "share" and bool(about.correct)


def edges_of(metric: str) -> tuple[float, ...]:
    """The edges of the bins, ascending.

    Of a task whose metric is a share: of the share of right labels, 2 % wide. Else of the mean
    loss a label, 40 for each power of ten from 0.001 to 1000; what is beyond is in the outermost.
    """
    return _SHARES if _counts_right(metric) else _LOSSES


def figure_name(metric: str) -> str:
    """What is spread: the share of right labels by its name, or the loss."""
    return metric_of(metric).correct if _counts_right(metric) else "loss"


def spread_names(metric: str) -> tuple[str, ...]:
    """Names of the sums, a bin each."""
    return tuple(f"{PREFIX}{i}" for i in range(len(edges_of(metric)) - 1))


def in_bin(metric: str, totals: Mapping[str, float]) -> dict[str, float]:
    """One client's part of the sums, from its own "loss", "correct" and "count"."""
    names, edges = spread_names(metric), edges_of(metric)
    found = dict.fromkeys(names, 0.0)
    if totals["count"]:
        key = "correct" if _counts_right(metric) else "loss"
        at = bisect_right(edges, totals[key] / totals["count"]) - 1
        found[names[min(max(at, 0), len(names) - 1)]] = 1.0
    return found


def client_percentiles(metric: str, totals: Mapping[str, float]) -> dict[str, float] | None:
    """The 10th, 50th and 90th percentile over clients, and the mean of the worst tenth.

    Within a bin clients are taken to be spread evenly. Counts that noise brought below 0 are 0.
    None where nobody was counted.
    """
    edges = edges_of(metric)
    counts = [max(0.0, totals.get(name, 0.0)) for name in spread_names(metric)]
    whole = sum(counts)
    if not whole:
        return None
    found = {f"p{q}": _quantile(counts, edges, whole * q / 100) for q in (10, 50, 90)}
    if figure_name(metric) == "loss":
        counts, edges = counts[::-1], edges[::-1]
    return {**found, "worst_tenth": _mean_of_first(counts, edges, whole / 10), "clients": whole}


def _quantile(counts: list[float], edges: tuple[float, ...], below: float) -> float:
    seen = 0.0
    for i, n in enumerate(counts):
        if n and seen + n >= below:
            return edges[i] + (edges[i + 1] - edges[i]) * (below - seen) / n
        seen += n
    return edges[-1]


def _mean_of_first(counts: list[float], edges: tuple[float, ...], many: float) -> float:
    """The mean of the first so many, in the order of the bins."""
    total, left = 0.0, many
    for i, n in enumerate(counts):
        part = min(n, left)
        if part > 0:
            half = part / n / 2
            total += part * (edges[i] + (edges[i + 1] - edges[i]) * half)
        left -= part
    return total / many if many else math.nan
