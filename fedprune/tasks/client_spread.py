"""How a quality is spread over clients, from a histogram that they add up.

Each client adds 1 to the bin of its own figure, so that no client's figure is sent by itself and
the counts can be summed securely. A percentile is known to a bin's width. Noise on the counts moves
the ranks that percentiles are of.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate, pairwise

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


def client_percentiles(
    metric: str, totals: Mapping[str, float], off: float = 0.0
) -> dict[str, float] | None:
    """The 10th, 50th and 90th percentile over clients, and the mean of the worst tenth.

    Within a bin clients are taken to be spread evenly. None where nobody was counted.

    Args:
        metric: the task's.
        totals: the counts; with noise also how many clients there are, as "count".
        off: share of the clients by which noise may move a rank; 0.0: there is none.

    Returns:
        With noise "clients" is how many there are, not how many were counted (nobody knows), and
        "rank_off" is `off` in percent. Who is so far out that noise may have put them there counts
        in the mean of the worst tenth as the best of them does.
    """
    edges = edges_of(metric)
    counts = [totals.get(name, 0.0) for name in spread_names(metric)]
    counts = _denoised(counts) if off else [max(0.0, n) for n in counts]
    whole = sum(counts)
    if not whole:
        return None
    found = {f"p{q}": _quantile(counts, edges, whole * q / 100) for q in (10, 50, 90)}
    if figure_name(metric) == "loss":
        counts, edges = counts[::-1], edges[::-1]
    found["worst_tenth"] = _mean_of_first(_held(counts, off * whole), edges, whole / 10)
    told = {"clients": totals["count"], "rank_off": 100 * off} if off else {"clients": whole}
    return found | told


def _denoised(counts: list[float]) -> list[float]:
    """The counts whose sums up to each bin rise, and come nearest to those of the noisy counts.

    Nearest in the largest difference, so that no rank is moved further than noise moved one:
    halfway between the largest sum up to a bin and the smallest from it on (Stout 2012, "Strict
    L-infinity isotonic regression"), which favours neither end. All that were counted are as many
    as the noisy counts add up to: who has nothing to be measured on does not say so.
    """
    whole = max(0.0, sum(counts))
    below = [min(max(0.0, n), whole) for n in accumulate(counts)]
    below[-1] = whole
    rising = accumulate(below, max)
    after = [*accumulate(reversed(below), min)][::-1]
    halfway = [(a + b) / 2 for a, b in zip(rising, after, strict=True)]
    return [b - a for a, b in pairwise([0.0, *halfway])]


def _held(counts: list[float], many: float) -> list[float]:
    """The counts with the first so many in the bin that the last of them is in."""
    sums = [*accumulate(counts)]
    at = next((i for i, n in enumerate(sums) if n >= many), len(sums) - 1)
    return [*[0.0] * at, sums[at], *counts[at + 1 :]]


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
