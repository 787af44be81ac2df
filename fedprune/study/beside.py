"""Tables of a study about more than its quality: the gap closed, and how clients fare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedprune.records.gap import gap_closure
from fedprune.report.reading import NO_VALUE, Run, metric_text, number, significant, worded
from fedprune.report.tables import Table
from fedprune.study.comparison import by_place, is_higher, metrics_in, seed_spread
from fedprune.study.design import SEED, Factors
from fedprune.study.outcomes import StudyOutcome

SIDES = ("local", "federated", "centralised")


def gap_table(outcomes: Sequence[StudyOutcome], factors: Factors) -> Table:
    """How much of the gap is closed, of means over seeds; without rows where no run has the arms.

    Of one seed it is the run's own, whose local spread is over clients.
    """
    names, rows = _but_seeds(factors), []
    for place, same in by_place(outcomes, names).items():
        told = [gap for o in same if (gap := o.said("gap_closure"))]
        if told:
            rows.append([*place, *_gap_cells(told)])
    columns = [*names, *(f"loss {side}" for side in SIDES), "closed", "runs", "why not"]
    return Table(columns, rows, (*names, "why not"))


def _gap_cells(told: Sequence[dict[str, Any]]) -> list[str]:
    values = [[number(gap["losses"][side]["mean"]) for gap in told] for side in SIDES]
    found = told[0] if len(told) == 1 else gap_closure(*values)
    cells = [_side(found["losses"][side]) for side in SIDES]
    why = found["withheld"] or (
        "by construction" if all(gap["by_construction"] for gap in told) else ""
    )
    return [*cells, significant(found["value"]), str(len(told)), why or NO_VALUE]


def _side(found: dict[str, Any]) -> str:
    deviation = found["deviation"]
    return significant(found["mean"]) + (f" ({significant(deviation)})" if deviation else "")


def fairness_table(outcomes: Sequence[StudyOutcome], factors: Factors) -> tuple[str, Table]:
    """How quality is spread over clients, means over seeds, and of which figure.

    Where clients have models of their own, of these on their own parts. Without rows where no run
    was asked for it (`--client-percentiles`).
    """
    names, keys = _but_seeds(factors), ("worst_tenth", "p10", "p50", "p90")
    rows, figures = [], dict[str, None]()
    for place, same in by_place(outcomes, names).items():
        spreads = [s for o in same if (s := o.said("client_spread"))]
        finals = [found for s in spreads if (found := s.get("own", s.get("final")))]
        if finals:
            figures |= dict.fromkeys(str(s["of"]) for s in spreads)
            rows.append([*place, *(_mean([f[key] for f in finals]) for key in keys)])
    heads = ["mean of the worst tenth", "10 %", "median", "90 %"]
    return worded(" or ".join(figures)), Table([*names, *heads], rows, tuple(names))


def recovery_table(outcomes: Sequence[StudyOutcome], factors: Factors) -> Table:
    """Validation loss around the last pruning and after all tuning, means over seeds.

    Without rows where no run pruned, or none was measured in the round that pruned last.
    """
    names, rows = _but_seeds(factors), []
    for place, same in by_place(outcomes, names).items():
        found = [losses for o in same if o.run is not None and (losses := around_pruning(o.run))]
        if found:
            rows.append([*place, *(_mean(its) for its in zip(*found, strict=True))])
    heads = ["before pruning began", "in the round of the last pruning", "at the end"]
    return Table([*names, *heads], rows, tuple(names))


def around_pruning(run: Run) -> tuple[float, float, float] | None:
    """Validation losses: before weights went, in the last round that removed some, and at the end.

    Rounds measure after their clients have tuned; an exchange at constant sparsity removes none.
    The first is NaN where the first round prunes; None where nothing was removed, or one of the
    others was not measured.
    """
    rows = [row for row in run.rows if row["arm"] == run.main]
    counts = [0, *(row["removed"] for row in rows)]
    pruned = [i for i in range(len(rows)) if counts[i + 1] != counts[i]]
    if not pruned:
        return None
    before = number(rows[pruned[0] - 1].get("loss")) if pruned[0] else math.nan
    last, end = number(rows[pruned[-1]].get("loss")), number(rows[-1].get("loss"))
    return None if math.isnan(last + end) else (before, last, end)


def reaching_table(outcomes: Sequence[StudyOutcome], factors: Factors) -> Table:
    """What runs took until, with all pruned, they were as good as every one of them gets.

    The level is the worst of the runs' best values on validation, among those that differ in the
    factor compared and the seed alone, so that each reaches it. Means over seeds; without rows
    where nothing is compared, and without a clock where no devices are simulated.
    """
    names, rows, clocks = _but_seeds(factors), list[list[str]](), list[float]()
    for same in by_place(outcomes, [n for n in names if n != factors.compared]).values():
        for metric in metrics_in(same):
            higher = is_higher(metric)
            paths = [(o, after_pruning(o.run)) for o in same if o.run and o.metric == metric]
            paths = [(o, path) for o, path in paths if path]
            if len({o.labels[factors.compared] for o, _ in paths}) < 2:
                continue
            level = _level([[step.value for step in path] for _, path in paths], higher=higher)
            reached = {id(o): first_at(path, level, higher=higher) for o, path in paths}
            for place, those in by_place([o for o, _ in paths], names).items():
                found = [reached[id(o)] for o in those]
                clocks += [step.clock for step in found]
                took = [[s.round for s in found], [s.megabytes for s in found]]
                took.append([s.clock for s in found])
                rows.append([*place, metric_text(metric, level), *map(_mean, took)])
    heads = [*names, "level on validation", "rounds", "MB", "simulated seconds"]
    most = len(heads) if any(map(math.isfinite, clocks)) else len(heads) - 1
    return Table(heads[:most], [row[:most] for row in rows], tuple(names))


def _level(values: Sequence[Sequence[float]], *, higher: bool) -> float:
    """The best value that each of some runs has."""
    return min(map(max, values)) if higher else max(map(min, values))


@dataclass(frozen=True)
class Measured:
    """A round that was measured: its value on validation, and what the run had taken by then."""

    value: float
    round: float
    megabytes: float
    clock: float


def after_pruning(run: Run) -> list[Measured]:
    """The measured rounds of a run from the one on that removed the last weights."""
    rows = [row for row in run.rows if row["arm"] == run.main]
    before = [i for i, row in enumerate(rows) if row["removed"] != rows[-1]["removed"]]
    found = [
        Measured(
            number(row.get(run.metric)),
            row["round"],
            (row["bytes_up"] + row["bytes_down"]) / 1e6,
            number(row.get("clock")),
        )
        for row in rows[before[-1] + 1 if before else 0 :]
    ]
    return [step for step in found if math.isfinite(step.value)]


def first_at(path: Sequence[Measured], level: float, *, higher: bool) -> Measured:
    """The first round whose value is at a level that one of them is at."""
    return next(s for s in path if (s.value >= level if higher else s.value <= level))


def _mean(values: Sequence[float]) -> str:
    spread = seed_spread(values)
    many = spread.count > 1
    return significant(spread.mean) + (f" ({significant(spread.deviation)})" if many else "")


def _but_seeds(factors: Factors) -> list[str]:
    return [name for name in factors.names if name != SEED]
