"""What left the clients and the server, and what it adds up to: the page's section on privacy."""

from __future__ import annotations

import math
import re
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from fedprune.privacy.accounting_terms import SIMULATED
from fedprune.privacy.mechanisms import is_noised, mechanism_of
from fedprune.privacy.statement import Line
from fedprune.report import drawing
from fedprune.report.reading import NO_VALUE, Run, number, significant, whole
from fedprune.report.tables import Table, shorten

_COLUMNS = [
    "quantity",
    "way",
    "times",
    "unit",
    "mechanism",
    "clip",
    "noise multiplier",
    "sampling",
    "numbers",
    "covered",
    "reason",
]


def privacy_sentences(run: Run) -> list[str]:
    """The section's first words, a paragraph each: epsilon, and what it does not count."""
    if not run.ledger:
        return ["This run kept no ledger of what left its clients."]
    told, last = run.summary.get("privacy") or {}, run.ledger[-1]
    if not any(map(is_noised, run.ledger)):
        return ["Epsilon is infinite: nothing that left a client was noised."]
    epsilon = told.get("epsilon", last["epsilon"])
    first = f"Epsilon is {_number(epsilon)}"
    if told:
        by = f" ({_number(told['rdp'])} by R\u00e9nyi divergences"
        why = told.get("pld_why_not")
        by += (
            f"; none by loss distributions: {why})"
            if why
            else (f", {_number(told['pld'])} by loss distributions)")
        )
        first += f" at delta {told['delta']:g}{by}, for one {told['unit']}, {told['relation']}"
    first += _simulated(run)
    if last["total"] != "infinity":
        return [f"{first}. It covers all that left."]
    reasons = dict.fromkeys(
        x["reason"] or f"{x['quantity']} as they are" for x in run.ledger if not x["covered"]
    )
    why = "; ".join(shorten(reason) for reason in reasons)
    return [f"{first}, for what is covered. The total is infinite: {why}."]


def _simulated(run: Run) -> str:
    """What is said beside every epsilon of noise that follows from the seed."""
    return f" ({SIMULATED})" if run.config.get("noise-source") == "seeded" else ""


NOTICES_SHOWN = 5  # More of them are in rounds.jsonl


def sum_notices(run: Run) -> list[str]:
    """What is worth knowing about secure sums, a sentence each; nothing without any."""
    return _told_notices(run, sums=True)


def other_notices(run: Run) -> list[str]:
    """What is worth knowing about who was asked: strikes, nodes that could not join."""
    return _told_notices(run, sums=False)


_OF_A_SUM = re.compile(r"\w+: (the secure|this) sum ")  # How a notice about a secure sum begins


def _told_notices(run: Run, *, sums: bool) -> list[str]:
    told = [
        f"Round {whole(row.get('round'))}: {shorten(text)}."
        for row in run.rows
        for text in row.get("notices") or ()
        if bool(_OF_A_SUM.match(text)) == sums
    ]
    more = len(told) - NOTICES_SHOWN
    rest = [f"{whole(more)} more are in rounds.jsonl."] if more > 0 else []
    return told[:NOTICES_SHOWN] + rest


def statement_of(run: Run) -> list[str]:
    """The paragraphs of the summary's statement."""
    told = run.summary.get("privacy") or {}
    return [text for text in str(told.get("statement") or "").split("\n\n") if text]


def release_table(run: Run) -> Table:
    """What left, a row for each quantity and each way in which it was treated."""
    kinds: dict[tuple[Any, ...], list[Line]] = {}
    for line in run.ledger:
        kinds.setdefault(tuple(str(line.get(key)) for key in _SAME), []).append(line)
    rows = [_row(lines) for lines in kinds.values()]
    return Table(_COLUMNS, rows, ("quantity", "way", "unit", "mechanism", "sampling", "reason"))


_SAME = ("quantity", "way", "unit", "mechanism", "clip", "z", "spread", "covered", "reason")
"""What releases have in common that are told in one row."""


def _row(lines: list[Line]) -> list[str]:
    first = lines[0]
    counts = sorted({line.get("coordinates") or 0 for line in lines})
    numbers = whole(counts[0]) if len(counts) == 1 else f"{whole(counts[0])} to {whole(counts[-1])}"
    sampling = ", ".join(dict.fromkeys(str(line["sampling"]) for line in lines))
    return [
        str(first["quantity"]),
        str(first["way"]),
        whole(len(lines)),
        str(first["unit"] or NO_VALUE),
        str(first["mechanism"]),
        significant(first.get("clip")),
        _how_much(first),
        shorten(sampling),
        numbers if counts[-1] else NO_VALUE,
        "yes" if first["covered"] else "no",
        shorten(first["reason"] or NO_VALUE),
    ]


def _how_much(line: Line) -> str:
    """The noise in the mechanism's own measure; of Skellam noise the first of its two numbers."""
    how = mechanism_of(line["mechanism"])
    value = line.get(how.sized or "z")
    return how.words.format(significant(value[0] if isinstance(value, list | tuple) else value))


def _number(value: Any) -> str:
    return "infinite" if math.isnan(number(value)) else significant(value)


def epsilon_finding(run: Run) -> str:
    """What the figure of epsilon shows; empty where there is none."""
    known = [x for x in run.ledger if not math.isnan(number(x["epsilon"]))]
    if not known or not any(map(is_noised, known)):
        return ""
    last = known[-1]
    words = f"{significant(last['epsilon'])}{_simulated(run)} after round {last['round']} of the "
    words += f"arm {last['arm']}"
    told = f"Epsilon of all that was covered, by R\u00e9nyi divergences: {words}."
    return f"{told} Arms are booked one after the other, as they see the same data."


@drawing.styled
def epsilon_figure(run: Run) -> Figure:
    """Epsilon so far over the rounds, a line for each arm."""
    figure, axes = drawing.canvas("epsilon so far")
    ends = {(x["arm"], x["round"]): x for x in run.ledger}  # the last line of each round
    rows = [dict(line) for line in ends.values()]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        drawing.draw_line(axes, rows, arm, "epsilon")
    axes.set_ylim(bottom=0)
    return drawing.finish(figure, axes, [])


def curve_finding(run: Run) -> str:
    """What the figure of the curve shows; empty where there is none."""
    told = run.summary.get("privacy") or {}
    known = [e for _, e in told.get("curve") or [] if number(e) > 0]
    if not known:
        return ""
    by = {"pld": "loss distributions", "rdp": "R\u00e9nyi divergences"}[told["curve_by"]]
    how = "at every delta" if told["mu_by"] == "exact" else "at the run's delta alone"
    return (
        f"Epsilon at every delta, by {by}. Gaussian differential privacy with mu "
        f"{_number(told['mu'])} gives the same {how}{_simulated(run)}."
    )


@drawing.styled
def curve_figure(run: Run) -> Figure:
    """Epsilon over delta."""
    figure, axes = drawing.canvas("epsilon")
    told = run.summary["privacy"]
    deltas, epsilons = zip(*((d, number(e)) for d, e in told["curve"]), strict=True)
    color, dashes, marker = drawing.ARMS["pruned"]
    axes.plot(deltas, epsilons, dashes, color=color, marker=marker, label="all that is covered")
    axes.axvline(told["delta"], ls=":", color=drawing.INK, label="the run's delta")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("delta")
    axes.set_ylim(bottom=0)
    drawing.legend(figure, *axes.get_legend_handles_labels())
    return figure
