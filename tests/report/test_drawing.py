import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fedprune.report.drawing import (
    ARMS,
    FAINT,
    GROUNDS,
    INK,
    OTHER_ARM,
    SERIES,
    STYLE,
    TRACK,
    canvas,
    legend,
    styled,
)


def luminance(color) -> float:
    """WCAG 2.2, relative luminance."""
    shares = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot([0.2126, 0.7152, 0.0722], shares))


def contrast(one, other) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def on(ground: str, color: str, alpha: float) -> tuple[float, ...]:
    pairs = zip(to_rgb(color), to_rgb(ground), strict=True)
    return tuple(alpha * c + (1 - alpha) * g for c, g in pairs)


@pytest.mark.parametrize("ground", GROUNDS)
def test_saved_figures_can_be_read_on_white_and_on_dark(ground):
    texts = {color for key, color in STYLE.items() if key.endswith(("labelcolor", "text.color"))}
    lines = {FAINT, OTHER_ARM[0], *SERIES, *(color for color, _, _ in ARMS.values())}
    assert texts == {INK}
    assert contrast(INK, ground) >= 4
    assert all(contrast(color, ground) >= 3 for color in lines), lines
    assert contrast(INK, on(ground, FAINT, TRACK)) >= 3


@pytest.mark.parametrize(("count", "length"), [(2, 4), (12, 8), (12, 30)])
def test_a_legend_fits_its_figure_and_takes_nothing_from_the_axes(count, length):
    @styled
    def drawn(many: int):
        figure, axes = canvas("loss")
        for i in range(many):
            axes.plot([0, 1], [i, i], label=f"{i:0{length}d}")
        legend(figure, *axes.get_legend_handles_labels())
        figure.draw_without_rendering()
        return figure, axes

    (figure, axes), (_, few) = drawn(count), drawn(4)
    (names,) = figure.legends
    assert names.get_window_extent().x1 <= figure.bbox.x1
    assert len(names.get_texts()) == count
    assert axes.get_window_extent().height >= 0.85 * few.get_window_extent().height
