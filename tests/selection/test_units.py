import itertools
import re

import pytest
import torch
from families import EXPERTS, FACTS, family
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedprune.selection.patterns import pattern_counts, pattern_sparsity
from fedprune.selection.units import UNITS, removable, shape_misfit, unit_labels
from fedprune.structure.layout import Layout, as_rows, layout_of

NAMES = list(FACTS)
SHAPES = {"n:m": (2, 4), "block": (2, 3)}
STRUCTURED = ["head", "neuron", "head-neuron", "sublayer", "layer"]


def plain(**shapes: tuple[int, ...]) -> Layout:
    sizes = {name: torch.Size(s) for name, s in shapes.items()}
    return Layout(sizes, tuple(shapes), (), {}, {"turned": "conv1d"})


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        *itertools.product(
            [u for u in UNITS if u not in ("channel", "expert")], ["gpt2", "t5-gated", "llama-gqa"]
        ),
        *(("expert", name) for name in ("mixtral", "qwen2-moe", "qwen3-moe")),
    ],
)
def test_numbers_run_from_zero_without_gaps_in_model_order(unit, name):
    layout = family(name).layout
    labels = unit_labels(layout, unit, SHAPES.get(unit))
    assert list(labels) == list(layout.prunable)
    assert all((x.shape, x.dtype) == (layout.shapes[n], torch.int32) for n, x in labels.items())
    found = torch.cat([x.reshape(-1) for x in labels.values()]).unique()
    top = int(found.max())
    assert set(range(top + 1)) <= set(found.tolist()) <= set(range(-1, top + 1))
    lows = [int(x[x >= 0].min()) for x in labels.values() if (x >= 0).any()]
    assert lows[0] == 0
    if UNITS[unit].tensors == "one":
        assert lows == sorted(set(lows))
        assert int(found.min()) == 0


@pytest.mark.parametrize(
    ("unit", "shape", "expected"),
    [
        ("weight", None, [[0, 1, 2], [3, 4, 5]]),
        ("row", None, [[0, 0, 0], [1, 1, 1]]),
        ("column", None, [[0, 1, 2], [0, 1, 2]]),
        ("block", (1, 2), [[0, 0, 1], [2, 2, 3]]),
        ("block", (2, 2), [[0, 0, 1], [0, 0, 1]]),
        ("block", (9, 9), [[0, 0, 0], [0, 0, 0]]),
        ("n:m", (1, 2), [[0, 0, 1], [2, 2, 3]]),
    ],
)
def test_literal_labels_and_conv1d_is_turned(unit, shape, expected):
    layout = plain(straight=(2, 3), turned=(3, 2))
    labels = unit_labels(layout, unit, shape)
    assert labels["straight"].tolist() == expected
    after = 1 + max(itertools.chain(*expected))
    assert (labels["turned"].t() - after).tolist() == expected


def test_a_convolution_s_row_is_its_output_channel():
    layout = layout_of(nn.Sequential(nn.Conv2d(3, 4, 2)))
    label = unit_labels(layout, "row")["0.weight"]
    assert label.shape == (4, 3, 2, 2)
    assert all((label[i] == i).all() for i in range(4))


@pytest.mark.sampled(18)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", ["head", "neuron", "head-neuron"])
def test_a_masked_unit_is_silent_as_if_only_nobody_read_it(name, unit):
    """Its producer's rows may go or stay: what decides is that the reader's columns are 0."""
    f = family(name)
    whole, labels = f.logits({}), unit_labels(f.layout, unit)
    for group in [g for g in f.layout.structure.groups if g.kind == unit]:
        reader = group.parts[-1]
        own = as_rows(f.layout, reader.tensor, labels[reader.tensor])
        for i in (0, len(reader.index) - 1):
            deaf = torch.ones(f.layout.shapes[reader.tensor], dtype=torch.bool)
            as_rows(f.layout, reader.tensor, deaf)[:, reader.index[i]] = False
            number = int(own[0, reader.index[i][0]])
            masked = f.logits({n: label != number for n, label in labels.items()})
            assert torch.allclose(masked, f.logits({reader.tensor: deaf}), rtol=0, atol=1e-11)
            assert (masked - whole).abs().max() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_sublayers_and_layers_are_whole_tensors(name):
    _, _, attentions, feeds, _, blocks = FACTS[name]
    layout = family(name).layout
    mixtures = len(layout.structure.mixtures)  # whose experts are one feed-forward layer
    feeds -= mixtures * (EXPERTS.get(name, 1) - 1)
    for unit, count in [("sublayer", attentions + feeds), ("layer", blocks)]:
        labels = unit_labels(layout, unit)
        assert all(len(x.unique()) == 1 for x in labels.values())
        assert len({int(x.unique()) for x in labels.values()} - {-1}) == count


def test_units_hold_what_can_be_removed():
    layout = family("llama-gqa").layout
    n = sum(layout.shapes[name].numel() for name in layout.prunable)
    attention = sum(layout.shapes[x].numel() for x in layout.prunable if "self_attn" in x)
    assert removable(layout, "head") == attention
    assert removable(layout, "neuron") == n - attention
    assert removable(layout, "layer") == removable(layout, "weight") == n


@pytest.mark.parametrize(
    ("unit", "shape", "message"),
    [
        *((unit, None, f"unit={unit!r}: no {unit} was recognised in this") for unit in STRUCTURED),
        ("heads", None, "unit='heads': no such unit"),
        ("block", None, "unit-shape=None: unit block needs one"),
        ("row", (1, 2), "unit-shape=[1, 2]: unit row has"),
        ("n:m", (4, 4), "unit-shape=[4, 4]: cannot be"),
        ("n:m", (0, 4), "unit-shape=[0, 4]: cannot be"),
        ("block", (0, 4), "unit-shape=[0, 4]: cannot be"),
    ],
)
def test_errors_say_what_is_allowed(unit, shape, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*; allowed: "):
        unit_labels(plain(w=(2, 3)), unit, shape)
    with pytest.raises(ValueError, match=r"^sparsity=0\.6: 2:4 keeps 2 of 4.*allowed: "):
        pattern_counts(8, 2, 4, 0.6)


def test_shapes_fit_where_they_mean_something():
    for unit, its in UNITS.items():
        assert shape_misfit(unit, SHAPES.get(unit)) == ""
        assert its.summary


@given(
    st.integers(0, 40),
    st.integers(2, 9).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))),
)
def test_pattern_counts_keep_n_of_m_and_the_share_of_the_last_rounded_up(columns, shape):
    n, m = shape
    counts = pattern_counts(columns, n, m, pattern_sparsity(n, m)).tolist()
    full, rest = divmod(columns, m)
    expected = [m - n] * full + ([rest - -(-rest * n // m)] if rest else [])
    assert counts == expected
    before = [0] * len(counts)
    for step in range(11):
        now = pattern_counts(columns, n, m, step / 10 * pattern_sparsity(n, m)).tolist()
        assert all(a <= b for a, b in zip(before, now, strict=True))
        before = now
    assert before == expected
