import pytest

from fedprune.report.drawing import canvas, legend, styled


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
