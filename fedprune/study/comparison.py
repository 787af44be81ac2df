"""Several runs beside each other: means, paired tests, ranks, and who is ahead at what cost."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from fedprune.study.design import Factors
from fedprune.study.outcomes import StudyOutcome
from fedprune.tasks.measures import metric_of

GridPlace = tuple[str, ...]  # Labels of some factors, in their order: where in the grid a run is


@dataclass(frozen=True)
class SeedSpread:
    """Values over repetitions: how many, their mean, and their standard deviation (NaN of one)."""

    count: int
    mean: float
    deviation: float


def seed_spread(values: Sequence[float]) -> SeedSpread:
    """The spread of the values that are finite."""
    known = [value for value in values if math.isfinite(value)]
    mean = statistics.fmean(known) if known else math.nan
    return SeedSpread(len(known), mean, statistics.stdev(known) if len(known) > 1 else math.nan)


def grid_place(outcome: StudyOutcome, factors: Sequence[str]) -> GridPlace:
    """The labels of a run in some factors."""
    return tuple(outcome.labels[factor] for factor in factors)


def by_place(
    outcomes: Sequence[StudyOutcome], factors: Sequence[str]
) -> dict[GridPlace, list[StudyOutcome]]:
    """Runs with the same labels in some factors, in the order of the grid."""
    out: dict[GridPlace, list[StudyOutcome]] = {}
    for outcome in outcomes:
        out.setdefault(grid_place(outcome, factors), []).append(outcome)
    return out


QualityBlocks = list[dict[str, float]]
"""For every combination of all other factors, a value by label of the one compared."""


def quality_blocks(outcomes: Sequence[StudyOutcome], factors: Factors) -> QualityBlocks:
    """Test quality in blocks: what differs within one is the factor compared, and nothing else.

    Those with fewer than two values are left out. All runs have one metric.
    """
    rest = [name for name in factors.names if name != factors.compared]
    out = []
    for same in by_place(outcomes, rest).values():
        values = {o.labels[factors.compared]: o.test(o.metric) for o in same}
        known = {label: value for label, value in values.items() if math.isfinite(value)}
        if len(known) > 1:
            out.append(known)
    return out


@dataclass(frozen=True)
class Paired:
    """Two labels over the blocks that have both."""

    first: str
    second: str
    count: int  # pairs
    difference: float  # mean of first - second, in the metric
    deviation: float  # its standard deviation over pairs
    # matched-pairs rank-biserial correlation: rank sum of the pairs in which `first` is better,
    # less that of the others, over both; -1 to 1, 0 where all pairs are equal. Kerby 2014, The
    # simple difference formula, equation 3
    effect: float
    # two-sided, of Wilcoxon's signed-rank test (Wilcoxon 1945; pairs without a difference are left
    # out); 1.0 where no pair differs
    p: float
    corrected: float = math.nan  # by Holm's method (1979) over all comparisons


def paired_tests(blocks: QualityBlocks, labels: Sequence[str], *, higher: bool) -> list[Paired]:
    """Every two labels against each other, corrected for how many comparisons there are."""
    found = [
        _paired(first, second, pairs, 1 if higher else -1)
        for first, second in itertools.combinations(labels, 2)
        if (pairs := [(b[first], b[second]) for b in blocks if first in b and second in b])
    ]
    corrected = holm([one.p for one in found])
    return [
        Paired(**{**vars(one), "corrected": p}) for one, p in zip(found, corrected, strict=True)
    ]


_DECIMALS = 12  # Of a difference: 0.3 - 0.2 and 0.2 - 0.1 are a tie, though not in binary


def _paired(first: str, second: str, pairs: Sequence[tuple[float, float]], sign: int) -> Paired:
    differences = [round(a - b, _DECIMALS) for a, b in pairs]
    spread = seed_spread(differences)
    moved = [sign * d for d in differences if d]
    p = float(stats.wilcoxon(moved).pvalue) if moved else 1.0
    ranks = stats.rankdata([abs(d) for d in moved]) if moved else []
    ahead = sum(
        float(rank) if d > 0 else -float(rank) for rank, d in zip(ranks, moved, strict=True)
    )
    effect = ahead / float(sum(ranks)) if moved else 0.0
    return Paired(first, second, len(pairs), spread.mean, spread.deviation, effect, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m times m - i + 1, never falling.

    Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    out, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, ps[place] * (len(ps) - rank)))
        out[place] = least
    return out


def least_p(pairs: int) -> float:
    """The smallest two-sided p that Wilcoxon's test can give for so many pairs: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - pairs))


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over blocks that have every label, rank 1 for the best, ties shared."""

    ranks: Mapping[str, float]  # mean rank by label, best first
    blocks: int  # how many
    p: float  # of Friedman's test that all labels are alike; NaN of fewer than three labels
    # mean ranks that differ by less are not told apart at 5 % by Nemenyi's test (Demsar 2006,
    # section 3.2.2, whose q is the quantile of the studentised range over the square root of 2)
    critical: float

    def together(self) -> list[tuple[str, ...]]:
        """The longest runs of labels that are not told apart, in the order of their ranks."""
        names = list(self.ranks)
        spans = [
            tuple(n for n in names[i:] if self.ranks[n] - self.ranks[first] <= self.critical)
            for i, first in enumerate(names)
        ]
        return [s for i, s in enumerate(spans) if len(s) > 1 and not _within(s, spans[:i])]


def _within(span: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> bool:
    return any(set(span) <= set(other) for other in others)


def ranking_of(blocks: QualityBlocks, labels: Sequence[str], *, higher: bool) -> Ranking | None:
    """The mean ranks of the labels; None where fewer than two blocks have them all.

    `blocks`: values; blocks of other metrics may be among them where these go the same way.
    """
    whole = [[block[label] for label in labels] for block in blocks if block.keys() >= {*labels}]
    if len(whole) < 2 or len(labels) < 2:
        return None
    table = [stats.rankdata([-v if higher else v for v in row]) for row in whole]
    means = {n: statistics.fmean(float(row[i]) for row in table) for i, n in enumerate(labels)}
    k, n = len(labels), len(whole)
    columns = [[float(row[i]) for row in table] for i in range(k)]
    alike = all(len(set(row)) == 1 for row in whole)
    p = 1.0 if alike else float(stats.friedmanchisquare(*columns).pvalue) if k > 2 else math.nan
    q = float(stats.studentized_range.ppf(0.95, k, math.inf)) / math.sqrt(2)
    critical = q * math.sqrt(k * (k + 1) / (6 * n))
    return Ranking(dict(sorted(means.items(), key=lambda item: item[1])), n, p, critical)


def metrics_in(outcomes: Sequence[StudyOutcome]) -> list[str]:
    """The metrics of the runs that count."""
    return list(dict.fromkeys(outcome.metric for outcome in outcomes if outcome.counts))


def is_higher(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric_of(metric).higher


def front_of(points: Sequence[tuple[float, float]], *, higher: bool) -> list[int]:
    """The places of the points that no other beats: at most the cost, and better, or the reverse.

    `points`: cost (less is better) and quality of each.

    Returns:
        In order of their cost; of equal points the first.
    """
    sign = -1 if higher else 1
    order = sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1]))
    out, best = list[int](), math.inf
    for place in order:
        if sign * points[place][1] < best:
            best = sign * points[place][1]
            out.append(place)
    return out
