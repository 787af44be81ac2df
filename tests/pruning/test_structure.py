import itertools

import pytest
import torch
from families import FACTS, family
from torch import nn

from fedprune.pruning.layout import as_rows, layout_of
from fedprune.pruning.structure import FAMILIES, stages_of, structure_of

NAMES = list(FACTS)


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_blocks_are_counted_right(name: str) -> None:
    heads, size, attentions, feeds, neurons, blocks = FACTS[name]
    layout = family(name).layout
    by_kind = {k: [g for g in layout.structure.groups if g.kind == k] for k in ("head", "neuron")}
    assert [len(by_kind["head"]), len(by_kind["neuron"])] == [attentions, feeds]
    assert len(layout.structure.blocks) == blocks
    for group in by_kind["head"]:
        assert {len(p.index) for p in group.parts} == {heads}
        reader = group.parts[-1]
        assert reader.axis == "column"
        queries = 3 if name == "llama-gqa" else 1
        assert reader.index.shape[1] == size * queries
    for group in by_kind["neuron"]:
        assert {len(p.index) for p in group.parts} == {neurons}
        assert group.parts[-1].index.tolist() == [[i] for i in range(neurons)]


@pytest.mark.parametrize("name", NAMES)
def test_every_index_is_a_row_or_column_of_its_tensor_once(name: str) -> None:
    layout = family(name).layout
    tensors = [p.tensor for g in layout.structure.groups for p in g.parts]
    assert len(tensors) == len(set(tensors))
    assert set(tensors) <= set(layout.prunable)
    for group in layout.structure.groups:
        for part in group.parts:
            rows, columns = as_rows(
                layout, part.tensor, torch.empty(layout.shapes[part.tensor])
            ).shape
            size = rows if part.axis == "row" else columns
            assert sorted(part.index.reshape(-1).tolist()) == list(range(size))


def test_gpt2_s_fused_rows_are_of_query_key_and_value() -> None:
    layout = family("gpt2").layout
    part = layout.structure.groups[0].parts[0]
    assert part.tensor == "transformer.h.0.attn.c_attn.weight"
    head = list(range(4, 8))
    assert part.index[1].tolist() == [*head, *(i + 12 for i in head), *(i + 24 for i in head)]


def test_a_kv_group_has_the_rows_of_its_queries() -> None:
    parts = {
        p.tensor.split(".")[-2]: p for p in family("llama-gqa").layout.structure.groups[0].parts
    }
    assert parts["k_proj"].index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert parts["q_proj"].index[1].tolist() == list(range(12, 24))
    assert parts["o_proj"].index[1].tolist() == list(range(12, 24))


def test_frozen_tensors_drop_out_and_a_group_without_its_reader_too() -> None:
    f = family("bert")
    full = structure_of(f.model, f.layout.prunable)
    first = full.groups[0]
    query, reader = first.parts[0].tensor, first.parts[-1].tensor
    without = structure_of(f.model, [n for n in f.layout.prunable if n != query])
    assert [p.tensor for p in without.groups[0].parts] == [p.tensor for p in first.parts[1:]]
    blind = structure_of(f.model, [n for n in f.layout.prunable if n != reader])
    assert [g.path for g in blind.groups] == [g.path for g in full.groups[1:]]
    only = structure_of(f.model, [n for n in f.layout.prunable if ".layer.1." in n])
    assert [b.path for b in only.blocks] == ["bert.encoder.layer.1"]


def test_the_table_names_classes_that_exist_and_all_of_them_are_met() -> None:
    met = {type(m).__name__ for name in NAMES for m in family(name).model.modules()}
    assert set(FAMILIES) <= met


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_the_prunable_tensors_in_order_blocks_together(name: str) -> None:
    layout = family(name).layout
    stages = stages_of(layout)
    assert list(itertools.chain(*stages)) == list(layout.prunable)
    blocks = [s for s in stages if s in {b.tensors for b in layout.structure.blocks}]
    assert len(blocks) == FACTS[name][5]
    assert all(len(stage) == 1 for stage in stages if stage not in blocks)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])})
        self.first = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([inner, nn.Linear(3, 3), nn.Identity()])
        self.last = nn.Linear(3, 3)


def test_only_outermost_lists_are_stacks_and_tensors_outside_are_stages() -> None:
    layout = layout_of(Stack())
    assert [b.path for b in layout.structure.blocks] == ["blocks.0", "blocks.1"]
    assert layout.structure.groups == ()
    assert stages_of(layout) == [
        ("first.weight",),
        ("blocks.0.experts.0.weight", "blocks.0.experts.1.weight"),
        ("blocks.1.weight",),
        ("last.weight",),
    ]


def test_modules_that_share_weights_are_one_group() -> None:
    shared = family("bert").model.bert.encoder.layer
    tied = nn.ModuleList([shared[0], shared[0], shared[1]])
    names = [n for n, p in tied.named_parameters() if p.dim() == 2]
    assert len(structure_of(tied, names).groups) == 4
