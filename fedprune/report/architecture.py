"""The architecture that a run left: of every attention and feed-forward layer, which units stay."""

import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedprune.options.refusal import counted
from fedprune.report.drawing import ARMS, FAINT, TRACK, canvas, styled
from fedprune.report.reading import Run, short_name, whole
from fedprune.server.rows import Row

PLURALS = {"head": "heads", "neuron": "neurons", "channel": "channels", "expert": "experts"}
MOST_ROWS = 64  # More groups than this are not drawn one by one; the table of layers has them


def spans(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers as (first, length)."""
    runs = itertools.groupby(enumerate(kept), lambda pair: pair[1] - pair[0])
    found = [[unit for _, unit in run] for _, run in runs]
    return [(run[0], len(run)) for run in found]


@styled
def architecture_figure(groups: Sequence[Row]) -> Figure:
    """One strip a group, from the top in model order; what is filled is left.

    `groups`: `structure` of a summary: path, kind, how many units there were, which are left.
    """
    shown = groups[:MOST_ROWS]
    figure, axes = canvas("", height=0.6 + 0.17 * len(shown))
    color = ARMS["pruned"][0]
    for place, group in enumerate(shown):
        unit = 1 / max(1, group["of"])
        axes.add_patch(Rectangle((0, place - 0.34), 1, 0.68, facecolor=FAINT, alpha=TRACK, lw=0))
        # A gap between units as long as they are wide enough to be told apart.
        gap = 0.12 * unit if group["of"] <= 32 else 0.0
        runs = [(u, 1) for u in group["kept"]] if gap else spans(group["kept"])
        for first, length in runs:
            corner, width = (first * unit + gap / 2, place - 0.34), length * unit - gap
            axes.add_patch(Rectangle(corner, width, 0.68, facecolor=color, lw=0))
        axes.text(1.015, place, f"{len(group['kept'])} of {group['of']}", va="center", fontsize=7)
    axes.set_yticks(
        range(len(shown)), [f"{short_name(g['path'])} {g['kind']}s" for g in shown], fontsize=7
    )
    axes.set(xlim=(0, 1.22), ylim=(len(shown) - 0.4, -0.6), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    return figure


def architecture_finding(run: Run) -> str:
    """How many units of each kind are left, and how many parameters, in one or two sentences."""
    groups = run.summary.get("structure") or []
    said = []
    for kind in dict.fromkeys(group["kind"] for group in groups):
        same = [g for g in groups if g["kind"] == kind]
        left, of = (sum(n) for n in ([len(g["kept"]) for g in same], [g["of"] for g in same]))
        gone = sum(not g["kept"] for g in same)
        whole_ones = f", {gone} of {counted(len(same), 'layer')} without any" if gone else ""
        said.append(f"{whole(left)} of {whole(of)} {PLURALS.get(kind, kind + 's')}{whole_ones}")
    text = f"Left in use: {'; '.join(said)}."
    left, of = run.summary.get("parameters_left"), run.summary.get("parameters")
    if left is None or of is None:
        return text
    if left == of:
        return f"{text} Nothing was taken out of the tensors (--shrink end or every does)."
    return f"{text} The model itself has {whole(left)} parameters now, of {whole(of)}."
