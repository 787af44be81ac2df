"""Figures of what was chosen on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from fedprune.report import plots
from fedprune.report.choices import by_rise
from fedprune.report.reading import short_name

NAMED = 4
"""So many curves have a name in the figure: those of the layers that bear least."""


@plots.styled
def tried_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation loss over the sparsities tried, a line a round, before tuning."""
    figure, axes = plots.canvas("validation loss before tuning")
    color = plots.ARMS["pruned"][0]
    for i, told in enumerate(history):
        sparsities, losses = zip(*told["tried"], strict=True)
        shade = 0.3 + 0.7 * (i + 1) / len(history)
        axes.plot(sparsities, losses, "-", marker="o", color=color, alpha=shade)
        if told["took"]:
            at = told["tried"][told["took"]]
            axes.plot(*at, "o", ms=7, mfc="none", mec=plots.INK)
    most = max(told["limit"] for told in history)
    low = min(loss for told in history for _, loss in told["tried"])
    high = max(loss for told in history for _, loss in told["tried"])
    axes.axhline(history[-1]["limit"], ls=":", color=plots.INK, label="limit, at last")
    # A mask that ruins the model would flatten everything of interest.
    axes.set_ylim(low - 0.1 * (most - low), min(high, low + 4 * (most - low)) + 0.1 * (most - low))
    axes.set_xlabel("weights removed, of prunable")
    axes.xaxis.set_major_formatter(plots.percentages())
    plots.legend(figure, *axes.get_legend_handles_labels())
    return figure


@plots.styled
def sensitivity_figure(found: Mapping[str, Any]) -> Figure:
    """The rise of the loss over the sparsity of one layer alone, a line a layer."""
    figure, axes = plots.canvas("rise of the validation loss")
    styles = [*plots.ARMS.values(), plots.OTHER_ARM]
    for i, layer in enumerate(by_rise(found)):
        start = [layer["sparsity"], found["loss"]]
        sparsities, losses = zip(start, *layer["tried"], strict=True)
        rises = [loss - found["loss"] for loss in losses]
        if i < NAMED:
            color, dashes, marker = styles[i]
            name = short_name(layer["name"], 24)
            axes.plot(sparsities, rises, dashes, marker=marker, color=color, label=name)
        else:
            axes.plot(sparsities, rises, "-", color=plots.INK, alpha=0.25, lw=0.8)
    axes.set_xlabel("weights removed, of the layer")
    axes.xaxis.set_major_formatter(plots.percentages())
    figure.legend(loc="outside upper left", ncols=2, handlelength=2, columnspacing=1.3)
    return figure
