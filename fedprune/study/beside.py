"""Tables of a study about more than its quality: the gap closed, and how clients fare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedprune.records.gap import gap_closure
from fedprune.report.reading import NO_VALUE, Run, number, significant, worded
from fedprune.report.tables import Table
from fedprune.study.comparison import by_place, seed_spread
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
    why = found["withheld"] or ("by construction" if told[0]["by_construction"] else "")
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


def _mean(values: Sequence[float]) -> str:
    spread = seed_spread(values)
    many = spread.count > 1
    return significant(spread.mean) + (f" ({significant(spread.deviation)})" if many else "")


def _but_seeds(factors: Factors) -> list[str]:
    return [name for name in factors.names if name != SEED]
