"""The pictures of several runs, each with the sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from fedprune.report.picture import Picture
from fedprune.report.reading import density, percent, significant
from fedprune.study.comparison import (
    Ranking,
    by_place,
    front_of,
    is_higher,
    metrics_in,
    quality_blocks,
    ranking_of,
)
from fedprune.study.design import SEED, Factors
from fedprune.study.figures import (
    COSTS,
    Cost,
    CostPoint,
    agreement_over_rounds,
    agreements,
    cost_figure,
    densities_figure,
    points_of,
    ranks_figure,
)
from fedprune.study.outcomes import StudyOutcome
from fedprune.study.tables import Panel


@dataclass(frozen=True)
class Collected:
    """Runs beside each other, and what to call them."""

    title: str  # of the page
    factors: Factors  # in which they differ
    outcomes: Sequence[StudyOutcome]  # of the runs, in the order of the grid
    command: str  # that has the page again

    @property
    def measured(self) -> list[StudyOutcome]:
        """Those that count."""
        return [outcome for outcome in self.outcomes if outcome.counts]


def panel_pictures(collected: Collected, panel: Panel, number: int) -> list[Picture]:
    """Quality against every cost that is known and differs between runs; those alike have one."""
    factors = collected.factors
    same = by_place(collected.measured, factors.rest)[panel.place]
    same = [o for o in same if o.metric == panel.metric]
    groups = list(by_place(same, [n for n in factors.names if n != SEED]).values())
    alike: dict[tuple[float, ...], list[tuple[Cost, list[CostPoint]]]] = {}
    for cost in COSTS:
        points = points_of(groups, factors.compared, cost)
        costs = tuple(float(f"{point.cost:.2g}") for point in points)
        if len(set(costs)) > 1:
            alike.setdefault(costs, []).append((cost, points))
    out = []
    for (cost, points), *others in alike.values():
        figure: Figure = cost_figure(points, panel.rows, panel.metric, cost)
        pairs = [(point.cost, point.quality.mean) for point in points]
        front = front_of(pairs, higher=is_higher(panel.metric))
        labels = dict.fromkeys(points[place].label for place in front)
        title = f"Quality against {cost.words}"
        words = _front_words(labels, SEED in factors.names, [other.words for other, _ in others])
        out.append(Picture(f"{cost.key}-{number}", title, words, figure))
    return out


def _front_words(labels: dict[str, None], repeated: bool, others: Sequence[str]) -> str:
    point = "a mean over seeds, its bar the standard deviation" if repeated else "a run"
    # Of single weights FLOPs are their density.
    same = f" The picture of {' and '.join(others)} is the same." if others else ""
    return (
        f"Each point is {point}. Ringed are points that no other equals or beats at the same cost "
        f"or less; from the cheapest on: {'; '.join(labels)}.{same}"
    )


def rank_pictures(collected: Collected) -> list[Picture]:
    """Mean ranks, where three or more labels were ranked in two or more blocks of one metric."""
    factors, blocks = collected.factors, list[dict[str, float]]()
    labels = list(dict.fromkeys(o.labels[factors.compared] for o in collected.measured))
    if len(labels) < 3:
        return []
    for metric in metrics_in(collected.measured):
        same = [o for o in collected.measured if o.metric == metric]
        sign = 1 if is_higher(metric) else -1
        blocks += [{k: sign * v for k, v in b.items()} for b in quality_blocks(same, factors)]
    ranking = ranking_of(blocks, labels, higher=True)
    if ranking is None:
        return []
    return [Picture("ranks", "Mean ranks", _ranks_words(ranking), ranks_figure(ranking))]


def _ranks_words(ranking: Ranking) -> str:
    first = next(iter(ranking.ranks))
    return (
        f"Over {ranking.blocks} blocks {first} has the best mean rank, "
        f"{ranking.ranks[first]:.2f}. Friedman's test that all are alike gives p = "
        f"{significant(ranking.p)}. A bar joins those whose ranks differ by less than the critical "
        f"difference, {ranking.critical:.2f} (Nemenyi, 5 %): they are not told apart."
    )


def mask_pictures(collected: Collected) -> list[Picture]:
    """What each label's mask keeps by layer, and how far clients' own masks agree; where known."""
    factors, out = collected.factors, []
    labels = list(dict.fromkeys(o.labels[factors.compared] for o in collected.measured))
    last = [o.labels[factors.over] for o in collected.measured] if factors.over else []
    chosen = [o for o in collected.measured if not last or o.labels[factors.over] == last[-1]]
    layers = {
        label: its
        for label in labels
        if (
            its := next(
                (o.said("layers") for o in chosen if o.labels[factors.compared] == label), None
            )
        )
    }
    if layers and len({tuple(layer["name"] for layer in its) for its in layers.values()}) == 1:
        words = f" at {factors.over} {last[-1]}" if last else ""
        shares = [density(layer) for its in layers.values() for layer in its]
        finding = (
            f"Weights kept of every prunable tensor{words}, in the first run of each: "
            f"{percent(min(shares))} to {percent(max(shares))}."
        )
        out.append(Picture("densities", "Density by layer", finding, densities_figure(layers)))
    found = {
        label: [o for o in collected.measured if o.labels[factors.compared] == label]
        for label in labels
    }
    known = {label: values for label, its in found.items() if (values := agreements(its))}
    if known:
        told = ", ".join(f"{label} {percent(values[-1][1])}" for label, values in known.items())
        finding = (
            "Kept weights that two clients' own masks have in common, mean over runs. In the last "
            f"pruning: {told}."
        )
        figure = agreement_over_rounds(found, labels)
        out.append(Picture("agreement", "Agreement of the clients' own masks", finding, figure))
    return out
