"""What was chosen on validation, in figures and in words about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from fedprune.options.refusal import counted
from fedprune.report import drawing
from fedprune.report.reading import percent, short_name, significant

NAMED = 4  # So many curves have a name in the figure: those of the layers that bear least


@drawing.styled
def tried_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation loss over the sparsities tried, a line a round, before tuning."""
    figure, axes = drawing.canvas("validation loss before tuning")
    color = drawing.ARMS["pruned"][0]
    for i, tried in enumerate(history):
        sparsities, losses = zip(*tried["tried"], strict=True)
        shade = 0.3 + 0.7 * (i + 1) / len(history)
        axes.plot(sparsities, losses, "-", marker="o", color=color, alpha=shade)
        if tried["took"]:
            at = tried["tried"][tried["took"]]
            axes.plot(*at, "o", ms=7, mfc="none", mec=drawing.INK)
    most = max(tried["limit"] for tried in history)
    low = min(loss for tried in history for _, loss in tried["tried"])
    high = max(loss for tried in history for _, loss in tried["tried"])
    axes.axhline(history[-1]["limit"], ls=":", color=drawing.INK, label="limit, at last")
    # A mask that ruins the model would flatten everything of interest.
    axes.set_ylim(low - 0.1 * (most - low), min(high, low + 4 * (most - low)) + 0.1 * (most - low))
    axes.set_xlabel("weights removed, of prunable")
    axes.xaxis.set_major_formatter(drawing.percentages())
    drawing.legend(figure, *axes.get_legend_handles_labels())
    return figure


@drawing.styled
def sensitivity_figure(found: Mapping[str, Any]) -> Figure:
    """The rise of the loss over the sparsity of one layer alone, a line a layer."""
    figure, axes = drawing.canvas("rise of the validation loss")
    styles = [*drawing.ARMS.values(), drawing.OTHER_ARM]
    for i, layer in enumerate(by_rise(found)):
        start = [layer["sparsity"], found["loss"]]
        sparsities, losses = zip(start, *layer["tried"], strict=True)
        rises = [loss - found["loss"] for loss in losses]
        if i < NAMED:
            color, dashes, marker = styles[i]
            name = short_name(layer["name"], 24)
            axes.plot(sparsities, rises, dashes, marker=marker, color=color, label=name)
        else:
            axes.plot(sparsities, rises, "-", color=drawing.INK, alpha=0.25, lw=0.8)
    axes.set_xlabel("weights removed, of the layer")
    axes.xaxis.set_major_formatter(drawing.percentages())
    figure.legend(loc="outside upper left", ncols=2, handlelength=2, columnspacing=1.3)
    return figure


def tried_finding(history: Sequence[Mapping[str, Any]]) -> str:
    """The history in words."""
    cuts = [h for h in history if h["took"]]
    last = history[-1]
    reached = percent(last["tried"][last["took"]][0])
    back = sum(h["action"] == "step back" for h in history)
    measured = sum(len(h["tried"]) - 1 for h in history)
    said = (
        f"In {counted(len(history), 'round')} the clients measured {counted(measured, 'mask')}"
        f" on their validation parts; {counted(len(cuts), 'was', 'were')} taken, up to a "
        f"sparsity of {reached}, "
        f"and {counted(back, 'time')} none was within the limit and the step was halved. The "
        f"limit was "
        f"{significant(history[0]['limit'])} at first and {significant(last['limit'])} at last"
    )
    return f"{said}. Each line is a round; what it took is ringed."


def sensitivity_finding(found: Mapping[str, Any]) -> str:
    """Which layers bear least and most."""
    ranked = by_rise(found)
    least, most = ranked[0], ranked[-1]
    return (
        f"Each line is one of {counted(len(ranked), 'layer')}, pruned alone in round "
        f"{found['round']} and "
        f"measured on validation without tuning, where the whole model has a loss of "
        f"{significant(found['loss'])}. Pruning hurts most in {least['name']} (loss "
        f"{significant(least['tried'][-1][1])} at {percent(least['tried'][-1][0])}) and least in "
        f"{most['name']} ({significant(most['tried'][-1][1])} at "
        f"{percent(most['tried'][-1][0])})."
    )


def by_rise(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers, those first that the same part costs most."""
    return sorted(found["layers"], key=lambda layer: -layer["tried"][-1][1])
