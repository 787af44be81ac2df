import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from fedprune.report.plots import architecture_figure, architecture_finding, spans
from fedprune.report.reading import Run, read_run
from tests.report.pages import write_page

GROUPS = [
    {"path": "h.0.attn", "kind": "head", "of": 4, "kept": [0, 3]},
    {"path": "h.0.mlp", "kind": "neuron", "of": 256, "kept": [*range(10), *range(20, 25)]},
    {"path": "h.1.mlp", "kind": "neuron", "of": 256, "kept": []},
]


@given(st.sets(st.integers(0, 40)))
def test_spans_are_the_runs_of_what_is_kept(kept):
    found = spans(sorted(kept))
    assert [u for first, length in found for u in range(first, first + length)] == sorted(kept)
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(found))


def test_every_kept_unit_is_filled_and_no_other():
    axes = architecture_figure(GROUPS).axes[0]
    boxes = [p for p in axes.patches if isinstance(p, Rectangle)]
    behind = len(GROUPS)
    assert len(boxes) == behind + 2 + 2, "two heads apart, two runs of neurons, nothing"
    widths = [b.get_width() for b in boxes if abs(b.get_y() - (1 - 0.34)) < 1e-9]
    assert sorted(widths) == pytest.approx([5 / 256, 10 / 256, 1.0])


def test_the_finding_counts():
    summary = {"structure": GROUPS, "parameters": 100, "parameters_left": 60}
    text = architecture_finding(Run({}, [], {}, summary))
    assert text == (
        "Left in use: 2 of 4 heads; 15 of 512 neurons, 1 of 2 layers without any. "
        "The model itself has 60 parameters now, of 100."
    )
    same = architecture_finding(Run({}, [], {}, {**summary, "parameters_left": 100}))
    assert "Nothing was taken out" in same


@pytest.mark.slow
def test_the_page_draws_it(make_run):
    folder = make_run(structure=GROUPS)
    page = write_page(folder).read_text("utf-8")
    assert 'aria-label="Architecture. Left in use: 2 of 4 heads' in page
    assert read_run(folder).summary["structure"] == GROUPS
