"""The last lines of a run, from its summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprune.records.staying import empty_summary
from fedprune.report.privacy_lines import after
from fedprune.report.reading import SPACE, significant, size, worded
from fedprune.report.round_table import reduced_cell
from fedprune.report.unpruned import model_word
from fedprune.tasks.measures import beside, metric_of


def came_short(summary: Mapping[str, Any]) -> str:
    """Why a run that has ended is a failed one; "" where it is not.

    One that the budget stopped is none: it ended as it was asked to.
    """
    if "failed" in summary:
        return str(summary["failed"])
    if "stopped" in (summary.get("privacy") or {}):
        return ""
    if not summary["reached"]:
        return "not pruned as asked: too few clients answered"
    unmeasured = summary["quality"]["final"] is None
    return "no client could measure the model at the end" if unmeasured else ""


def closing_lines(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """The last lines of a run, from its summary."""
    metric, quality = summary["metric"], summary["quality"]
    word = model_word(summary)
    names = {"dense_at_pruning": "dense, when pruning began", "final": f"{word}, at the end"}
    names |= {"own": "each client's own model"} if "own" in quality else {}
    names |= {"newcomers": "clients that never trained"} if "newcomers" in quality else {}
    others = {a: f"{a} baseline, at the end" for a in quality if a not in names}
    wide = 34 if {"local-only", "centralised", "dense-small"} & set(quality) else 28
    lines = ["", f"{'on the test split':<{wide + 2}} {worded(metric):>10} {'loss':>8}"]
    lines += [
        f"  {text:<{wide}} {figure(found.get(metric), 3):>10} {figure(found['loss'], 4):>8}"
        for key, text in {**names, **others}.items()
        if (found := quality[key])
    ]
    kept, prunable = summary["kept_parameters"], summary["prunable_parameters"]
    disk = summary["bytes_on_disk"]
    sent = summary["bytes_up"] + summary["bytes_down"]
    dense = summary["bytes_dense"]
    against = f" and tune, dense FedAvg {in_bytes(dense)} ({sent / dense:.0%})" if dense else ""
    return [
        *lines,
        *_beside(summary),
        *_over_clients(summary),
        *[f"gap       {text}" for text in gap_words(summary.get("gap_closure"))],
        *_earlier(summary),
        *_nothing_removed(summary),
        *_own_masks(summary),
        *_not_reached(summary),
        f"kept      {kept:,} of {prunable:,} prunable weights: sparsity "
        f"{summary['sparsity']:.4f}, {summary['sparsity_of_all']:.4f} of all parameters",
        *([f"warning   {empty}"] if (empty := empty_summary(summary)) else []),
        *_reduced(summary),
        *_smaller(summary),
        *best_lines(summary),
        f"on disk   {in_bytes(disk['pruned'])}, dense {in_bytes(disk['dense'])}",
        f"sent      {in_bytes(sent)} to score{against}; "
        f"{in_bytes(summary['bytes_evaluation'])} more to measure",
        *_devices(summary),
        f"failures  {summary['failures']}",
        *after(summary),
        *[f"continued with a change: {line}" for line in summary.get("resumed_anyway", ())],
        f"report    {folder / 'report.html'}",
        f"repeat    {summary['command']}",
    ]


def best_lines(summary: Mapping[str, Any]) -> list[str]:
    """Which round's model the result is, and whether the run ended before its last round."""
    out = []
    if (best := summary.get("best_round")) is not None:
        out.append(f"model     of round {best}, with the lowest loss on validation")
    if (ended := summary.get("ended_early")) is not None:
        out.append(f"ended     early, after round {ended} of {summary['rounds']} (--patience)")
    return out


def _over_clients(summary: Mapping[str, Any]) -> list[str]:
    told = summary.get("client_spread") or {}
    names = {"worst_tenth": "worst tenth", "p10": "10 %", "p50": "median", "p90": "90 %"}
    return [
        f"  {arm}: {told['of']} over clients: "
        + ", ".join(f"{text} {found[key]:.3g}" for key, text in names.items())
        + (f"; noise: ranks to {off:.2g} points" if (off := found.get("rank_off")) else "")
        for arm, found in told.items()
        if arm != "of"
    ]


def _devices(summary: Mapping[str, Any]) -> list[str]:
    told = summary.get("devices")
    if not told:
        return []
    energy = f", {told['joules'] / 1e3:.3g} kJ" if told["joules"] else ""
    return [f"devices   {told['seconds']:,.1f} s by the simulated clock{energy}"]


def _earlier(summary: Mapping[str, Any]) -> list[str]:
    before = summary.get("before")
    if not before:
        return []
    then, now = before["then"], before["now"]
    texts = [_measured(_first_of(q)) for q in (then, now) if q]
    texts += [] if now else [f"not measured: {before['why']}"]
    return [f"  on {before['run']}, {before['task']}: {' -> '.join(texts)}"]


def _first_of(quality: Mapping[str, float | None]) -> dict[str, float]:
    """The loss and the two figures after it, as far as they are known."""
    known = {n: v for n, v in quality.items() if n != "count" and v is not None}
    return dict(list(known.items())[:3])


def _reduced(summary: Mapping[str, Any]) -> list[str]:
    """What was taken out because it was redundant, not because a score said so."""
    told = summary.get("reduced")
    return [f"reduced   {reduced_cell(told)}"] if told else []


def _smaller(summary: Mapping[str, Any]) -> list[str]:
    left, whole = summary["parameters_left"], summary["parameters"]
    if left == whole:
        return []
    return [f"model     {left:,} of {whole:,} parameters are left in it, {left / whole:.1%}"]


def _own_masks(summary: Mapping[str, Any]) -> list[str]:
    own = summary.get("own_sparsity")
    return [] if own is None else [f"own       mean sparsity of the clients' own models: {own:.4f}"]


def _nothing_removed(summary: Mapping[str, Any]) -> list[str]:
    if "own_sparsity" in summary:
        return []
    idle = summary["reached"] and summary["sparsity"] == 0 and summary["sparsity_asked"]
    text = "NOTHING REMOVED: the least important unit is larger than the sparsity asked for"
    if str(summary.get("short_why")).startswith("groups"):
        text = f"NOTHING REMOVED: {summary['short_why']}"
    if summary.get("adaptive"):
        text = "NOTHING REMOVED: nothing that was tried stayed within the tolerance"
    stopped = "stopped" in (summary.get("privacy") or {})
    short = summary.get("short") and summary["sparsity"] and summary["reached"] and not stopped
    less = f"SHORT OF WHAT WAS ASKED: {summary.get('short_why')}"
    return [text] if idle else [less] if short else []


def _not_reached(summary: Mapping[str, Any]) -> list[str]:
    stopped = "stopped" in (summary.get("privacy") or {})
    why = "the privacy budget was spent" if stopped else "too few clients answered"
    return [] if summary["reached"] else [f"NOT REACHED: {why} before the run was finished"]


def _beside(summary: Mapping[str, Any]) -> list[str]:
    """What else the task measures, and what would be reached without a model."""
    final, metric = summary["quality"]["final"] or {}, summary["metric"]
    more = {name: final[name] for name in beside(final, metric)}
    lines = [f"  {model_word(summary)}: {_measured(more)}"] if more else []
    naive = summary["naive"]
    return lines + ([f"  {metric_of(metric).without} alone: {_measured(naive)}"] if naive else [])


def _measured(values: Mapping[str, float]) -> str:
    return ", ".join(f"{worded(name)} {value:.4g}" for name, value in values.items())


def figure(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; a large one by its first digits."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < _WIDE else f"{value:.{digits + 1}g}"


_WIDE = 1e5  # From here on a number is shown by its first digits and an exponent


def in_bytes(count: float) -> str:
    """A number of bytes for people, three significant digits: as the report has it."""
    return size(count).replace(SPACE, " ")


BY_CONSTRUCTION = (
    "It is 1 by construction: sums of everyone are those of pooled data, and nobody trains."
)


def gap_words(told: Mapping[str, Any] | None) -> list[str]:
    """What a summary says of the gap, a sentence each; nothing where it says nothing.

    `told`: ``gap_closure`` of a summary, as `fedprune.records.gap.gap_of` has it.
    """
    if not told:
        return []
    sides = {name: _side(found) for name, found in told["losses"].items()}
    value = told["value"]
    head = f"Not said: {told['withheld']}" if value is None else f"{significant(value)} is closed"
    losses = (
        f"test loss {sides['local']} of clients alone, {sides['federated']} federated, "
        f"{sides['centralised']} of pooled data"
    )
    error = told.get("standard_error")
    width = told.get("denominator")
    about = "" if error is None else f"; local less centralised {significant(width)}"
    about += "" if error is None else f" (standard error {significant(error)})"
    return [f"{head}: {losses}{about}.", *([BY_CONSTRUCTION] if told["by_construction"] else [])]


def _side(found: Mapping[str, Any]) -> str:
    deviation = found["deviation"]
    spread = "" if deviation is None else f" ({significant(deviation)} over {found['count']})"
    return significant(found["mean"]) + spread


ALONE = (
    "The arm centralised is played in this process, by one client with all data: no release of "
    "anybody's, and not in the ledger. Clients of the arm local-only would send nothing; here the "
    "server plays them, and what it asks is in the ledger."
)
"""What is said of arms that no federation plays."""
