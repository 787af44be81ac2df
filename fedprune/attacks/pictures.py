"""What was made of a message beside what was there."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from fedprune.report.drawing import styled

TILE = 0.62  # Inches


@styled
def tiles(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor | None]]]) -> Figure:
    """A table of images; a row is its name and an image (H, W) in 0..1, or None, a column.

    Values outside of 0..1 are cut off.
    """
    size = TILE * len(columns) + 0.8, TILE * len(rows) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for y, (name, images) in enumerate(rows):
        for x, image in enumerate(images):
            axes = grid[y][x]
            if image is None:
                axes.axis("off")
            else:
                axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="none")
                axes.grid(visible=False)
                axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
                axes.spines[["top", "right"]].set_visible(True)
            if y == 0:
                axes.set_title("\n".join(textwrap.wrap(columns[x], 10)), fontsize=6.5)
        grid[y][0].text(
            -0.15, 0.5, name, transform=grid[y][0].transAxes, ha="right", va="center", fontsize=8
        )
    return figure
