"""What stays dense, what is not taken out, and what keeps almost nothing."""

import pytest
import torch
from torch import Tensor, nn

from fedprune import RunConfig
from fedprune.records.staying import (
    empty_summary,
    nearly_empty,
    staying_kinds,
    staying_summary,
    uncut,
)
from fedprune.selection.units import unit_labels
from fedprune.structure.layout import layout_of


def test_shares_of_what_stays_and_of_what_is_prunable_make_the_whole():
    model = nn.ModuleDict({"rnn": nn.LSTM(2, 3), "table": nn.Embedding(5, 2), "l": nn.Linear(4, 4)})
    model.experts = nn.Parameter(torch.ones(2, 3, 4))
    layout = layout_of(model)
    kinds = staying_kinds(layout)
    count = sum(p.numel() for p in model.parameters())
    assert layout.prunable == ("l.weight",)
    assert sum(entry["share"] for entry in kinds.values()) == pytest.approx(1 - 16 / count)
    assert [(kind, entry["parameters"]) for kind, entry in kinds.items()] == [
        ("recurrent weights", 84),
        ("stacks of matrices (experts and the like)", 24),
        ("embeddings", 10),
        ("biases, norms and other vectors", 4),
    ]
    text = staying_summary(kinds)
    assert text.startswith("88.4% of all parameters: recurrent weights 60.9%, stacks of matrices")
    assert staying_summary(staying_kinds(layout_of(nn.Linear(2, 2, bias=False)))) == ""


class Depends(nn.Module):
    """A block that torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x


def test_blocks_that_unit_layer_cannot_take_out_are_named():
    from transformers import LlamaConfig, LlamaModel

    own = layout_of(nn.ModuleList([Depends(), Depends()]))
    assert uncut(RunConfig(unit="layer"), own) == ["0", "1"]
    assert uncut(RunConfig(), own) == []
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    known = layout_of(LlamaModel(LlamaConfig(num_attention_heads=2, vocab_size=9, **sizes)))
    assert uncut(RunConfig(unit="layer"), known) == []


@pytest.mark.parametrize("unit", ["head", "neuron", "channel", "sublayer"])
def test_a_unit_that_a_model_does_not_have_says_what_it_takes_and_what_there_is(unit):
    layout = layout_of(nn.ModuleList([Depends(), Depends()]))
    with pytest.raises(ValueError, match=rf"no {unit} was recognised .* takes a.*; allowed:") as no:
        unit_labels(layout, unit)
    assert str(no.value).endswith("row, column, layer")


@pytest.mark.parametrize(
    ("kept", "total", "unit", "empty"),
    [
        *((99, 10_000, "weight", True), (100, 10_000, "weight", False)),
        *((7, 512, "weight", True), (8, 512, "weight", False)),
        *((1, 16, "weight", True), (2, 16, "weight", False)),
        *((0, 512, "weight", True), (0, 512, "layer", False)),
    ],
)
def test_almost_nothing_is_under_a_hundredth_or_a_handful(kept, total, unit, empty):
    layers = [{"name": "a.weight", "kept": kept, "total": total}]
    names = nearly_empty(layers, unit)
    assert names == ["a.weight"] * empty
    text = empty_summary({"layers": layers, "nearly_empty": names})
    wanted = f"almost nothing is left of 1 tensor: a.weight {kept} of {total:,}"
    assert text == (wanted if empty else "")
