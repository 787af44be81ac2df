"""The tables of a study: for the page as words, for a paper as LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprune.report.reading import (
    NO_VALUE,
    SPACE,
    metric_text,
    percent,
    significant,
    size,
    worded,
)
from fedprune.report.tables import Table, shorten
from fedprune.runtime.files import write_atomically
from fedprune.study.comparison import (
    GridPlace,
    Paired,
    SeedSpread,
    by_place,
    is_higher,
    seed_spread,
)
from fedprune.study.design import Factors
from fedprune.study.outcomes import StudyOutcome
from fedprune.tasks.measures import metric_of


@dataclass(frozen=True)
class Panel:
    """The runs that differ in the compared factor, in the one they are compared over, and the seed.

    Attributes:
        place: labels of the other factors.
        metric: of all its runs with a result.
        rows, columns: labels of the compared factor, and of the one over which; one column, "",
            without such.
        cells: the spread of test quality over repetitions, by row and column.
    """

    place: GridPlace
    metric: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], SeedSpread]

    def best(self, column: str) -> str:
        """The row that is best on average in a column; "" where none was measured."""
        known = {r: s.mean for r in self.rows if (s := self.cells[r, column]).count}
        choose = max if is_higher(self.metric) else min
        return choose(known, key=lambda row: known[row]) if known else ""


def panels_of(outcomes: Sequence[StudyOutcome], factors: Factors) -> list[Panel]:
    """A panel for each combination of the labels of the other factors, with a result in it."""
    out = []
    for place, same in by_place(outcomes, factors.rest).items():
        measured = [o for o in same if o.run is not None]
        if measured:
            out.append(_panel(place, measured, same, factors))
    return out


def _panel(
    place: GridPlace,
    measured: Sequence[StudyOutcome],
    same: Sequence[StudyOutcome],
    factors: Factors,
) -> Panel:
    rows = tuple(dict.fromkeys(o.labels[factors.compared] for o in same))
    over = {o.name: o.labels[factors.over] if factors.over else "" for o in same}
    columns = tuple(dict.fromkeys(over.values()))
    metric = measured[0].metric
    values = {
        (row, column): seed_spread(
            [
                o.test(metric)
                for o in measured
                if (o.labels[factors.compared], over[o.name]) == (row, column)
            ]
        )
        for row in rows
        for column in columns
    }
    return Panel(place, metric, rows, columns, values)


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
        name = re.sub(r"[^\w.=-]+", "-", "-".join(panel.place)).strip("-") or "quality"
        paths.append(out / "tables" / f"{name}.tex")
        write_atomically(paths[-1], latex_of(panel, factors).encode())
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
