"""Every figure of a run with the sentence that says what it shows, as PNG and as inline SVG."""

from collections.abc import Sequence
from dataclasses import replace

from fedprune.records.choices import sensitivity_in, tried_in
from fedprune.report import plots
from fedprune.report.choices import (
    sensitivity_figure,
    sensitivity_finding,
    tried_figure,
    tried_finding,
)
from fedprune.report.picture import Picture
from fedprune.report.plots import architecture_figure, architecture_finding
from fedprune.report.privacy import curve_figure, curve_finding, epsilon_figure, epsilon_finding
from fedprune.report.reading import (
    Run,
    arms,
    chance_levels,
    density,
    distinct_arms,
    metric_text,
    percent,
    pruning_rounds,
    ratio,
    series,
    significant,
    size,
    whole,
    worded,
)
from fedprune.server.rows import Row
from fedprune.tasks.measures import metric_of


def pictures(run: Run) -> dict[str, Picture]:
    """All pictures of a run, by name, in the order of the page."""
    made = (
        quality_picture(run),
        sparsity(run),
        traffic(run),
        agreement(run),
        architecture(run),
        layers(run),
        *choices(run),
        *privacy(run),
    )
    if len({row["round"] for row in run.rows}) == 1:  # a single point is no curve
        made = tuple(replace(p, figure=None) if p.name in OVER_ROUNDS else p for p in made)
    return {picture.name: picture for picture in made}


OVER_ROUNDS = {"quality", "sparsity", "bytes", "agreement", "epsilon"}
"""Pictures whose axis is the rounds."""


def choices(run: Run) -> list[Picture]:
    """What an adaptive schedule tried, and how layers bear pruning; none in other runs."""
    rows = [row for row in run.rows if row["arm"] == run.main]
    history, found, made = tried_in(rows), sensitivity_in(rows), list[Picture]()
    if history:
        figure = tried_figure(history)
        made.append(Picture("tried", "Sparsities tried", tried_finding(history), figure))
    if found:
        figure = sensitivity_figure(found)
        made.append(Picture("sensitivity", "Sensitivity", sensitivity_finding(found), figure))
    return made


def privacy(run: Run) -> list[Picture]:
    """What epsilon came to; none where nothing was noised."""
    made = list[Picture]()
    if spent := epsilon_finding(run):
        made.append(Picture("epsilon", "Privacy spent", spent, epsilon_figure(run)))
    if told := curve_finding(run):
        made.append(Picture("curve", "Epsilon for every delta", told, curve_figure(run)))
    return made


def quality_picture(run: Run) -> Picture:
    """Validation quality over rounds."""
    title = f"Validation {worded(run.metric)}"
    said = [text for arm in arms(run.rows) if (text := _quality_of(run, arm))]
    if not said:
        return Picture("quality", title, "No round was measured.", None)
    better = "Higher" if metric_of(run.metric).higher else "Lower"
    zoomed = plots.shown_range(run.rows, run.metric) is not None
    cut = " The axes begin with the first pruning; earlier rounds lie beyond them."
    finding = f"{better} is better. On validation: {'; '.join(said)}.{_sampled(run)}{cut * zoomed}"
    return Picture("quality", title, finding, plots.quality_figure(run.rows, run.metric))


def _sampled(run: Run) -> str:
    """By whom it was measured, where that was a sample; with the error of the last loss."""
    rows = [row for row in run.rows if row["arm"] == run.main and row.get("measured_by")]
    if not rows:
        return ""
    by, error = rows[-1]["measured_by"], rows[-1].get("loss_error")
    told = "" if error is None else f"; the last loss has a standard error of {significant(error)}"
    return f" Measured by {by} clients, drawn anew each time{told}."


def _quality_of(run: Run, arm: str) -> str:
    """First, last and best validation quality of one arm, in words; empty where none is known."""
    known = [(r, v) for r, v in zip(*series(run.rows, arm, run.metric), strict=True) if v == v]
    if not known:
        return ""
    said = [f"{metric_text(run.metric, value)} after round {at}" for at, value in known]
    best = (max if metric_of(run.metric).higher else min)(value for _, value in known)
    tail = "" if best == known[-1][1] else f" (best {metric_text(run.metric, best)})"
    return f"{arm} {said[0]}" if len(said) == 1 else f"{arm} {said[0]}, {said[-1]}{tail}"


def sparsity(run: Run) -> Picture:
    """Removed share over rounds."""
    title = "Sparsity"
    values = series(run.rows, run.main, "sparsity")[1]
    if all(value != value for value in values):
        return Picture("sparsity", title, "No round was measured.", None)
    removing = pruning_rounds(run.rows, run.main)
    finding = "No weight has been removed."
    if removing:
        gone = whole(series(run.rows, run.main, "removed")[1][-1])
        finding = (
            f"Weights were removed {_between(removing)}: {gone} in all, {percent(values[-1])} of "
            "prunable."
        )
    hidden = set(arms(run.rows)) - set(distinct_arms(run.rows, "sparsity"))
    if hidden:
        finding += f" Same curve, not drawn again: {', '.join(sorted(hidden))}."
    # A line at 0 says no more than the sentence; baselines may have pruned where the run did not.
    flat = not any(pruning_rounds(run.rows, arm) for arm in arms(run.rows))
    figure = None if flat else plots.sparsity_figure(run.rows)
    return Picture("sparsity", title, finding, figure)


def _between(rounds: Sequence[int]) -> str:
    first, last = rounds[0], rounds[-1]
    return f"in round {first}" if first == last else f"between rounds {first} and {last}"


def traffic(run: Run) -> Picture:
    """Bytes up and down against dense averaging."""
    title = "Bytes sent"
    known = [r for r in run.rows if r["arm"] == run.main and r.get("bytes_up") is not None]
    if not known:
        return Picture("bytes", title, "No traffic was counted.", None)
    last: Row = known[-1]
    sent = last["bytes_up"] + last["bytes_down"]
    dense = last["bytes_dense"]
    part = f", or {percent(ratio(sent, dense))} of the {size(dense)} that dense FedAvg takes"
    finding = (
        f"By round {last['round']}, clients had sent {size(last['bytes_up'])} up and received "
        f"{size(last['bytes_down'])} down: {size(sent)}"
        f"{f'{part} for the same tuning' if dense else ''}. Evaluation, counted apart: "
        f"{size(run.summary.get('bytes_evaluation', last.get('bytes_evaluation')))}."
    )
    return Picture("bytes", title, finding, plots.bytes_figure(run.rows))


def agreement(run: Run) -> Picture:
    """How far the clients' own masks coincide."""
    title = "Agreement of the clients' own masks"
    meaning = (
        "The measure: the share of kept weights that two clients' own top-k masks have in common, "
        "on average over pairs. Chance is the density of such a mask among the weights still "
        "alive, which is what random masks would have in common."
    )
    rounds, values = series(run.rows, run.main, "agreement")
    chance = chance_levels(run.rows, run.main)
    known = [(r, v, c) for r, v, c in zip(rounds, values, chance, strict=True) if v == v]
    if not known:
        return Picture("agreement", title, "It was not measured in this run.", None)
    average = sum(v for _, v, _ in known) / len(known)
    expected = sum(c for _, _, c in known) / len(known)
    finding = (
        f"Clients agreed on {percent(average)} of the weights to keep, on average over "
        f"{len(known)} pruning {'round' if len(known) == 1 else 'rounds'}, against "
        f"{percent(expected)} by chance; in the last, round {known[-1][0]}, on "
        f"{percent(known[-1][1])} against {percent(known[-1][2])}. {meaning}"
    )
    return Picture("agreement", title, finding, plots.agreement_figure(run.rows))


def architecture(run: Run) -> Picture:
    """Which heads, neurons and channels are left."""
    title, groups = "Architecture", run.summary.get("structure") or []
    if not groups:
        why = "No heads, neurons or channels are known."
        why = why if run.over else "It is known when the run has ended."
        return Picture("architecture", title, why, None)
    return Picture("architecture", title, architecture_finding(run), architecture_figure(groups))


def layers(run: Run) -> Picture:
    """What each prunable tensor kept."""
    title = "Density by layer"
    tensors = run.summary.get("layers") or []
    if not tensors:
        why = "No layer was reported." if run.over else "It is known when the run has ended."
        return Picture("layers", title, why, None)
    kept, total = (sum(layer[key] for layer in tensors) for key in ("kept", "total"))
    if kept == total:
        return Picture("layers", title, f"All of {len(tensors)} prunable tensors is kept.", None)
    low, high = (choose(tensors, key=density) for choose in (min, max))
    finding = (
        f"{percent(ratio(kept, total))} of the weights of {len(tensors)} prunable tensors are "
        f"kept: from {percent(density(low))} in {low['name']} to "
        f"{percent(density(high))} in {high['name']}."
    )
    return Picture("layers", title, finding, plots.layers_figure(tensors))
