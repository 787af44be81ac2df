"""The tables of a study: for the page as words, for a paper as LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprune.report.reading import NO_VALUE, SPACE, metric_text, percent, significant, size, worded
from fedprune.report.tables import Table, shorten
from fedprune.runtime.files import write_atomically
from fedprune.study.comparison import (
    GridPlace,
    Paired,
    SeedSpread,
    by_place,
    is_higher,
    metrics_in,
    seed_spread,
)
from fedprune.study.design import SEED, Factors
from fedprune.study.outcomes import StudyOutcome
from fedprune.tasks.measures import metric_of


@dataclass(frozen=True)
class Panel:
    """The runs that differ in the compared factor, in the one they are compared over, and the seed.

    Spreads are of test quality over repetitions.
    """

    place: GridPlace  # labels of the other factors
    metric: str  # of all its runs that count
    rows: tuple[str, ...]  # labels of the compared factor
    columns: tuple[str, ...]  # of the one over which; one column, "", without such
    cells: dict[tuple[str, str], SeedSpread]  # by row and column
    seeds: dict[tuple[str, str], frozenset[str]]  # of these repetitions
    alone: bool = True  # whether the runs of this place have one metric; else each has a panel

    @property
    def name(self) -> GridPlace:
        """What tells it from the other panels."""
        return self.place if self.alone else (*self.place, worded(self.metric))

    def uneven(self, column: str) -> bool:
        """Whether means in a column are of different seeds, so that none of them is the best."""
        return len({seeds for row in self.rows if (seeds := self.seeds[row, column])}) > 1

    def best(self, column: str) -> str:
        """The row that is best on average in a column; "" of one alone, or where seeds differ."""
        known = {r: s.mean for r in self.rows if (s := self.cells[r, column]).count}
        choose = max if is_higher(self.metric) else min
        none = len(known) < 2 or self.uneven(column)
        return "" if none else choose(known, key=lambda row: known[row])


def panels_of(outcomes: Sequence[StudyOutcome], factors: Factors) -> list[Panel]:
    """A panel for each combination of the labels of the other factors, and metric, that counts."""
    out = []
    for place, same in by_place(outcomes, factors.rest).items():
        metrics = metrics_in(same)
        for metric in metrics:
            others = {_spot(o, factors) for o in same if o.counts and o.metric != metric}
            its = [o for o in same if _spot(o, factors) not in others]
            out.append(_panel(place, metric, its, factors, alone=len(metrics) == 1))
    return out


def _spot(outcome: StudyOutcome, factors: Factors) -> tuple[str, str]:
    column = outcome.labels[factors.over] if factors.over else ""
    return outcome.labels[factors.compared], column


def _panel(
    place: GridPlace, metric: str, same: Sequence[StudyOutcome], factors: Factors, *, alone: bool
) -> Panel:
    rows = tuple(dict.fromkeys(_spot(o, factors)[0] for o in same))
    columns = tuple(dict.fromkeys(_spot(o, factors)[1] for o in same))
    spots = {(row, column): list[StudyOutcome]() for row in rows for column in columns}
    for one in same:
        if one.counts:
            spots[_spot(one, factors)].append(one)
    cells = {spot: seed_spread([o.test(metric) for o in its]) for spot, its in spots.items()}
    named = "" if factors.compared == SEED else SEED
    seeds = {spot: frozenset(o.labels.get(named, "") for o in its) for spot, its in spots.items()}
    return Panel(place, metric, rows, columns, cells, seeds, alone)


def quality_over(panel: Panel, factors: Factors) -> Table:
    """Mean (standard deviation) of test quality; of how many runs, where others are of more."""
    heads = [
        f"{factors.over} {column}" if column else worded(panel.metric) for column in panel.columns
    ]
    metric, most = panel.metric, max(spread.count for spread in panel.cells.values())
    rows = [
        [row, *(spread_text(metric, panel.cells[row, column], most) for column in panel.columns)]
        for row in panel.rows
    ]
    return Table([factors.compared, *heads], rows, (factors.compared,))


def spread_text(metric: str, spread: SeedSpread, most: int) -> str:
    """A mean, its standard deviation in brackets; of how many runs, if of fewer than most."""
    if not spread.count:
        return NO_VALUE
    if spread.count == 1:
        mean, deviation = metric_text(metric, spread.mean), ""
    else:
        share = metric_of(metric).form == "share"
        mean, deviation = to_the_same_place(spread, 100 if share else 1)
        mean, deviation = mean + f"{SPACE}%" * share, f" ({deviation})"
    return mean + deviation + (f" of {spread.count}" if spread.count < most else "")


def to_the_same_place(spread: SeedSpread, scale: float = 1) -> tuple[str, str]:
    """Mean and standard deviation, times the scale, to the second digit of the deviation.

    Where it is 0, or not finite, both have three digits.
    """
    mean, deviation = scale * spread.mean, scale * spread.deviation
    if not (math.isfinite(deviation) and deviation > 0):
        return significant(mean), significant(deviation)
    decimals = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:,.{decimals}f}", f"{deviation:,.{decimals}f}"


def tests_table(found: Sequence[Paired], metric: str) -> Table:
    """Every two labels against each other."""
    columns = ["compared", "pairs", f"difference in {worded(metric)}", "effect", "p", "Holm"]
    rows = [
        [
            f"{one.first} against {one.second}",
            str(one.count),
            _difference(one, metric),
            f"{one.effect:+.2f}".replace("-", "\u2212"),
            _p(one.p),
            _p(one.corrected),
        ]
        for one in found
    ]
    return Table(columns, rows, ("compared",))


def _difference(one: Paired, metric: str) -> str:
    """Mean and standard deviation over pairs, of shares in points."""
    share = metric_of(metric).form == "share"
    spread = SeedSpread(one.count, abs(one.difference), one.deviation)
    mean, deviation = to_the_same_place(spread, 100 if share else 1)
    sign = "+" if one.difference > 0 else "\u2212" if one.difference < 0 else ""
    return f"{sign}{mean}{f'{SPACE}points' * share} ({deviation})"


def _p(value: float) -> str:
    return NO_VALUE if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def runs_table(outcomes: Sequence[StudyOutcome], factors: Factors) -> Table:
    """Every run: its labels, quality, sparsity, bytes and digest of weights, or why it has none."""
    rows = []
    for one in outcomes:
        measured = metric_text(one.metric, one.test(one.metric)) if one.run else NO_VALUE
        sent = [one.said("bytes_up"), one.said("bytes_down")]
        rows.append(
            [
                *(one.labels[name] for name in factors.names),
                measured,
                percent(one.said("sparsity")),
                size(sum(sent)) if None not in sent else NO_VALUE,
                str(one.said("weights_digest") or NO_VALUE)[:12],
                shorten(one.reason or "done"),
            ]
        )
    columns = [*factors.names, "test quality", "removed", "sent", "weights", "outcome"]
    return Table(columns, rows, (*factors.names, "weights", "outcome"))


def write_latex(out: Path, panels: Sequence[Panel], factors: Factors) -> list[Path]:
    """Write ``tables/*.tex``, one for each panel, for the package booktabs, the best in bold."""
    paths = []
    for panel in panels:
        name = re.sub(r"[^\w.=-]+", "-", "-".join(panel.name)).strip("-") or "quality"
        paths.append(out / "tables" / f"{name}.tex")
        write_atomically(paths[-1], latex_of(panel, factors).encode())
    for old in {*(out / "tables").glob("*.tex")} - {*paths}:  # of what the study was before
        old.unlink()
    return paths


def latex_of(panel: Panel, factors: Factors) -> str:
    """A panel as a LaTeX table."""
    heads = [f"{factors.over} {c}" if c else worded(panel.metric) for c in panel.columns]
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        " & ".join(map(escaped, [factors.compared, *heads])) + r" \\",
        r"\midrule",
    ]
    best = {column: panel.best(column) for column in panel.columns}
    for row in panel.rows:
        cells = [_latex_cell(panel, row, column, best[column] == row) for column in panel.columns]
        lines.append(" & ".join([escaped(row), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(panel: Panel, row: str, column: str, best: bool) -> str:
    spread = panel.cells[row, column]
    if not spread.count:
        return "--"
    scale = 100 if metric_of(panel.metric).form == "share" else 1
    mean, deviation = to_the_same_place(spread, scale)
    mean = rf"\mathbf{{{mean}}}" if best else mean
    return rf"${mean} \pm {deviation}$" if spread.count > 1 else f"${mean}$"


_SPECIAL = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
}


def escaped(text: str) -> str:
    """Text in which LaTeX reads no character as its own."""
    return "".join(_SPECIAL.get(character, character) for character in text)
