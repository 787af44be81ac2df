import itertools

import pytest
import torch
from families import FACTS, QUERIES, family
from torch import nn

from fedprune.structure.families.catalog import SUBLAYERS
from fedprune.structure.groups import stages_of, structure_of
from fedprune.structure.layout import as_rows, layout_of

NAMES = list(FACTS)


@pytest.mark.parametrize("name", NAMES)
def test_groups_blocks_and_stages_are_counted_right(name):
    heads, size, attentions, feeds, neurons, blocks = FACTS[name]
    layout = family(name).layout
    by_kind = {k: [g for g in layout.structure.groups if g.kind == k] for k in ("head", "neuron")}
    assert [len(by_kind["head"]), len(by_kind["neuron"])] == [attentions, feeds]
    assert len(layout.structure.blocks) == blocks
    for group in by_kind["head"]:
        assert {len(p.index) for p in group.parts} == {heads}
        reader = group.parts[-1]
        assert reader.axis == "column"
        assert reader.index.shape[1] == size * QUERIES.get(name, 1)
    for group in by_kind["neuron"]:
        assert {len(p.index) for p in group.parts} == {neurons}
        assert group.parts[-1].index.tolist() == [[i] for i in range(neurons)]
    parts = [p for g in layout.structure.groups for p in g.parts]
    assert len({p.tensor for p in parts} & set(layout.prunable)) == len(parts)
    for part in parts:  # every row or column once
        shape = as_rows(layout, part.tensor, torch.empty(layout.shapes[part.tensor])).shape
        size = shape[part.axis == "column"]
        assert sorted(part.index.reshape(-1).tolist()) == list(range(size))
    stages = stages_of(layout)
    assert list(itertools.chain(*stages)) == list(layout.prunable)
    together = {b.tensors for b in layout.structure.blocks}
    assert sum(stage in together for stage in stages) == blocks
    assert all(len(stage) == 1 for stage in stages if stage not in together)


def test_gpt2_s_fused_rows_are_of_query_key_and_value():
    layout = family("gpt2").layout
    part = layout.structure.groups[0].parts[0]
    assert part.tensor == "transformer.h.0.attn.c_attn.weight"
    head = list(range(4, 8))
    assert part.index[1].tolist() == [*head, *(i + 12 for i in head), *(i + 24 for i in head)]


def test_a_kv_group_has_the_rows_of_its_queries():
    parts = {
        p.tensor.split(".")[-2]: p for p in family("llama-gqa").layout.structure.groups[0].parts
    }
    assert parts["k_proj"].index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert parts["q_proj"].index[1].tolist() == list(range(12, 24))
    assert parts["o_proj"].index[1].tolist() == list(range(12, 24))


def test_frozen_tensors_drop_out_and_a_group_without_its_reader_too():
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


def test_the_table_names_classes_that_exist_and_all_of_them_are_met():
    met = {type(m).__name__ for name in NAMES for m in family(name).model.modules()}
    assert set(SUBLAYERS) <= met


def test_only_outermost_lists_are_stacks_and_tensors_outside_are_stages():
    inner = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])})
    blocks = nn.ModuleList([inner, nn.Linear(3, 3), nn.Identity()])
    stack = {"first": nn.Linear(3, 3), "blocks": blocks, "last": nn.Linear(3, 3)}
    layout = layout_of(nn.ModuleDict(stack))
    assert [b.path for b in layout.structure.blocks] == ["blocks.0", "blocks.1"]
    assert layout.structure.groups == ()
    assert stages_of(layout) == [
        ("first.weight",),
        ("blocks.0.experts.0.weight", "blocks.0.experts.1.weight"),
        ("blocks.1.weight",),
        ("last.weight",),
    ]


def test_modules_that_share_weights_are_one_group():
    shared = family("bert").model.bert.encoder.layer
    tied = nn.ModuleList([shared[0], shared[0], shared[1]])
    names = [n for n, p in tied.named_parameters() if p.dim() == 2]
    assert len(structure_of(tied, names).groups) == 4
