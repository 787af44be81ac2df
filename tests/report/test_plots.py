import math
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from PIL import Image

from fedprune.report import drawing, plots
from fedprune.report.picture import Picture, svg, write_plots
from fedprune.report.pictures import pictures
from fedprune.report.reading import (
    chance_levels,
    distinct_arms,
    duration,
    grid,
    percent,
    pruning_rounds,
    read_run,
    series,
    short_name,
    significant,
    size,
)

ROWS = [
    {"arm": "pruned", "round": 1, "sparsity": 0.0, "loss": 3.0},
    {"arm": "pruned", "round": 2, "sparsity": 0.5, "loss": None},
    {"arm": "pruned", "round": 3, "sparsity": 0.75, "loss": math.inf},
    {"arm": "random", "round": 1, "sparsity": 0.0, "loss": 3.0},
    {"arm": "random", "round": 2, "sparsity": 0.5, "loss": 4.0},
    {"arm": "random", "round": 3, "sparsity": 0.75, "loss": 5.0},
]


WORDS = [
    (significant, [0, 7.5, -2.346, 999.96], ["0", "7.50", "-2.35", "1,000"]),
    (significant, [123456, 0.00012345, 1e12], ["123,000", "0.000123", "1.00e+12"]),
    (significant, [None, math.nan], ["\u2013", "\u2013"]),
    (size, [0, 999, 1000, 999_999], ["0 B", "999 B", "1.00 kB", "1.00 MB"]),
    (size, [12_345_678, 5.4e15, None], ["12.3 MB", "5,400 TB", "\u2013"]),
    (duration, [4.25, 187.4, 7261], ["4.25 s", "3 min 7 s", "2 h 1 min"]),
    (percent, [0.8, 1, 0.99996], ["80.0 %", "100 %", "99.996 %"]),
]


@pytest.mark.parametrize(("word", "values", "texts"), WORDS)
def test_numbers_have_three_significant_digits_and_their_units(word, values, texts):
    assert [word(value).replace("\u00a0", " ") for value in values] == texts


def test_what_was_not_measured_is_a_gap():
    rounds, values = series(ROWS, "pruned", "loss")
    assert rounds == [1, 2, 3]
    assert values[0] == 3.0
    assert all(map(math.isnan, values[1:]))


def test_chance_is_the_density_among_the_weights_alive_before():
    assert chance_levels(ROWS, "pruned") == [1.0, 0.5, 0.5]


def test_pruning_rounds_are_those_that_changed_the_sparsity_and_equal_curves_are_drawn_once():
    assert pruning_rounds(ROWS, "pruned") == [2, 3]
    assert pruning_rounds([*ROWS, {**ROWS[2], "round": 4}], "pruned") == [2, 3]
    assert distinct_arms(ROWS, "sparsity") == ["pruned"]
    assert distinct_arms(ROWS, "loss") == ["pruned", "random"]


def test_layers_are_placed_by_kind_and_block():
    assert grid(["a.0.q.weight", "a.1.q.weight", "head.weight"]) == [
        ("a.*.q.weight", 0),
        ("a.*.q.weight", 1),
        ("head.weight", -1),
    ]
    assert grid([f"layer{i}" for i in range(45)])[44] == ("tensors 40 to 59", 4)


def test_long_names_are_abbreviated_and_keep_their_numbers():
    assert short_name("model.layers.0.mlp.up_proj.weight") == "layers.0.mlp.up_proj"
    names = [
        f"bert.encoder.layer.{i}.{part}.weight"
        for i in range(12)
        for part in ("attention.self.query", "attention.output.dense", "intermediate.dense")
    ]
    short = [short_name(name) for name in names]
    assert short[:2] == ["b.e.l.0.attention.self.query", "b.e.l.0.attention.output.dense"]
    assert len(set(short)) == len(names)
    assert len(short_name("x" * 90)) == 30


@pytest.mark.parametrize("count", [1, 4, 24, 25, 200])
def test_any_number_of_layers_can_be_drawn(count):
    layers = [{"name": f"blocks.{i}.$w$", "kept": i, "total": 200} for i in range(count)]
    figure = plots.layers_figure(layers)
    text = svg(Picture("layers", "Density", "so and so", figure))
    assert ElementTree.fromstring(text.replace("xlink:href", "href")).tag == "svg"


@pytest.mark.slow
def test_a_single_round_without_baselines_can_be_drawn():
    row = {"arm": "pruned", "round": 1, "sparsity": 0.0, "loss": 3.0, "agreement": 0.5}
    row |= {"bytes_up": 0, "bytes_down": 0, "bytes_dense": 0}
    figures = [plots.quality_figure([row], "loss"), plots.sparsity_figure([row])]
    figures += [plots.bytes_figure([row]), plots.agreement_figure([row])]
    assert all(svg(Picture(str(i), "t", "f", figure)) for i, figure in enumerate(figures))


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "marks"), [(40, 40), (600, 60)])
def test_many_rounds_are_a_line_and_few_of_them_have_a_mark(rounds, marks):
    rows = [{"arm": "pruned", "round": r, "sparsity": r / 1000} for r in range(1, rounds + 1)]
    drawn = svg(Picture("sparsity", "Sparsity", "x", plots.sparsity_figure(rows)))
    assert drawn.count("data-value=") == marks


def test_svg_takes_its_colours_from_the_page_and_is_the_same_each_time(make_run):
    run = read_run(make_run())
    first, second = ([svg(p) for p in pictures(run).values()] for _ in range(2))
    assert first == second
    page = "".join(first)
    assert not any(color in page for color in ("#0072b2", "#d55e00", "#009e73", drawing.INK))
    assert "var(--series-1)" in page
    assert "http" not in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_labels_are_escaped():
    layers = [{"name": "<script>&.$a$", "kept": 1, "total": 2}]
    text = svg(Picture("layers", '"><script>', "x", plots.layers_figure(layers)))
    assert "<script>" not in text
    assert "&lt;script&gt;&amp;.$a$" in text


@pytest.mark.slow
def test_plots_are_written_and_stale_ones_go(make_run):
    folder = make_run()
    style = dict(matplotlib.rcParams)
    write_plots(folder, pictures(read_run(folder)))
    names = {path.stem for path in (folder / "plots").iterdir()}
    assert names == {"quality", "sparsity", "bytes", "agreement", "layers"}
    assert all(path.read_bytes()[1:4] == b"PNG" for path in (folder / "plots").iterdir())
    with Image.open(folder / "plots" / "quality.png") as image:
        assert image.getpixel((0, 0))[3] == 0, "on no ground of its own"
    assert dict(matplotlib.rcParams) == style
    write_plots(folder, {"quality": Picture("quality", "t", "f", None)})
    assert not (folder / "plots" / "quality.png").exists()


def test_findings_state_their_numbers(make_run):
    findings = {name: p.finding for name, p in pictures(read_run(make_run())).items()}
    flat = {name: finding.replace("\u00a0", " ") for name, finding in findings.items()}
    assert "pruned 35.3 after round 1, 8.56 after round 12" in flat["quality"]
    assert "between rounds 5 and 9: 78,643 in all, 80.0 % of prunable" in flat["sparsity"]
    assert "not drawn again: random" in flat["sparsity"]
    assert "14.8 MB up" in flat["bytes"]
    assert "61.5 % of the 49.2 MB" in flat["bytes"]
    assert "73.7 % by chance" in flat["agreement"]
    assert "20.0 % of the weights of 12 prunable tensors" in flat["layers"]


def test_a_run_with_nothing_measured_has_words_and_no_figure(empty_run):
    made = pictures(read_run(empty_run))
    assert all(picture.figure is None and picture.finding for picture in made.values())
