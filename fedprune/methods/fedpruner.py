"""FedPruner: clients train sub-models of whole blocks, as many as their memory holds.

Wu et al. 2025, arXiv 2508.17209, "Memory-efficient federated fine-tuning of large language models
via layer pruning". Blocks are grouped by what they do, and a client's sub-model has one block of
each group, so that it has as many blocks as there are groups. The similarity of two blocks is the
CKA of their outputs (`fedprune.scores.block_similarity`); client k has K_k groups, by its part of
the blocks, rounded up, of each stack. The server averages every weight over the clients whose
sub-model has it:

    w_j = Σ_k n_k m_kj w_kj / Σ_k n_k m_kj,   m_kj = 1 where block(j) is in k's sub-model, and
                                              outside of blocks.

Here groups grow from single blocks: the two whose blocks' mean similarity is highest become one,
until K_k are left (average linkage; ties by position). Of a group the block stays that turns its
input most (`fedprune.scores.block_influence`; ties by position). Both are of sums over all clients
that are scored, asked once, before the first training; who has no memory for the whole model
(``--budget memory``) is not asked, and a run without anybody who has is refused.

Partition p has the depth number p mod their number, or that which its device has the memory for
(``--budget memory``).

Where it departs from the paper, which was read in its abstract and its beginning: how it cuts the
graph of similarities into groups, and how it says which block of a group matters most, was not
read, and is as above; similarities are of the pooled tokens of all clients, measured once, so that
clients of one depth have the same sub-model; weights are trained, not LoRA's
factors; the finer variant, attention and feed-forward parts of a block apart, is not there. A part
is a mask, so it saves bytes, and no time; what the biases of a block that is not there add stays.
Models without blocks are refused. Beside it the model can be pruned as in any run (``--sparsity``,
0 unless given).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil

import torch
from torch import Tensor

from fedprune.methods.apart import depth_conflicts
from fedprune.methods.global_mask import thin
from fedprune.methods.growing import all_kept
from fedprune.methods.holders import part_of_client, trained_by_part
from fedprune.methods.method import Method, Trained
from fedprune.options.option import option
from fedprune.options.refusal import ConfigError
from fedprune.options.section import Section
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.forms import form_of
from fedprune.protocol.port import Ask
from fedprune.scores.block_influence import INFLUENCE
from fedprune.scores.block_similarity import SIMILARITY, similarities
from fedprune.server.round import Round, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.server.work import bytes_needed
from fedprune.structure.groups import stacks_of
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks, Tensors


class Options(Section):
    """What ``--method-options`` takes."""

    depths: tuple[float, ...] = option(
        "method", "parts of the blocks that sub-models have, from above 0 to 1", (1.0, 0.75, 0.5)
    )


@dataclass(frozen=True)
class Memory:
    """The sub-model of each depth, as masks that keep its blocks whole; none until measured.

    And the depth of every client, where its device decides that.
    """

    depths: tuple[Masks, ...] = ()
    whose: tuple[int, ...] = ()


def _init(model: Model, r: Round) -> Memory:
    """The memory before anything is measured.

    Raises:
        ConfigError: the model has no blocks, or nobody has the memory for the whole.
    """
    if not r.layout.structure.blocks:
        why = "no blocks were recognised in this model, of which sub-models could be made"
        raise ConfigError(f"method='fedpruner': {why}; allowed: models with a stack of blocks")
    if r.config.budget == "memory" and not _able(model, r):
        why = "no class of devices has the memory for the whole model, whose blocks are compared"
        raise ConfigError(f"budget='memory': {why}; allowed: none, or a class with more memory")
    return Memory(whose=r.plan.tiers)


def linked_groups(similarity: Tensor, many: int) -> list[list[int]]:
    """So many groups of blocks, by average linkage.

    `similarity`: of every two blocks, (blocks, blocks). `many`: 1 to the number of blocks.
    """
    groups = [[i] for i in range(len(similarity))]

    def alike(pair: tuple[int, int]) -> float:
        one, other = (groups[g] for g in pair)
        return float(similarity[one][:, other].mean())

    while len(groups) > many:
        one, other = max(combinations(range(len(groups)), 2), key=alike)
        groups[one] += groups.pop(other)
    return groups


def chosen_blocks(similarity: Tensor, influence: Sequence[float], many: int) -> list[int]:
    """Of each group of blocks the one of most influence."""
    return sorted(
        max(sorted(group), key=lambda block: influence[block])
        for group in linked_groups(similarity, many)
    )


def sub_model(
    masks: Masks, layout: Layout, similar: Sequence[Tensor], influence: Tensor, depth: float
) -> Masks:
    """The masks without the blocks that a sub-model of this depth does without.

    `similar`: similarities of the blocks of each stack. `influence`: of every block, in model
    order. `depth`: from above 0 to 1.
    """
    gone, rest = set[str](), influence.tolist()
    for blocks, similarity in zip(stacks_of(layout), similar, strict=True):
        own, rest = rest[: len(blocks)], rest[len(blocks) :]
        stay = chosen_blocks(similarity, own, ceil(depth * len(blocks)))
        gone.update(t for i, b in enumerate(blocks) if i not in stay for t in b.tensors)
    return {n: torch.zeros_like(m) if n in gone else m for n, m in masks.items()}


def _able(model: Model, r: Round) -> set[int]:
    """Who can hold the whole model, which is compared block by block once."""
    needs = bytes_needed(model, r.plan) if r.config.budget == "memory" else 0.0
    return {p for p, device in enumerate(r.plan.fleet) if device.memory >= needs}


def _with_room(model: Model, r: Round) -> list[int]:
    """Who is asked about the whole model: of the scored, or else of all, who can hold it."""
    if r.config.budget != "memory":
        return list(r.scored)
    able = _able(model, r)
    return [p for p in r.scored if p in able] or [p for p in r.training() if p in able]


def _measured(model: Model, memory: Memory, r: Round) -> Talk[tuple[Memory, Aggregate]]:
    """The sub-models, by what the clients sum; without them, if too few answer."""
    who = _with_room(model, r)
    questions = [r.question(model, "score", score=s, dense=True) for s in (SIMILARITY, INFLUENCE)]
    found = yield [Ask(question, who) for question in questions]
    sums: Tensors = {}
    for question, each in zip(questions, found, strict=True):
        if each.total is None or (len(who) >= r.config.min_clients and too_few(each, r.config)):
            return memory, each
        sums |= form_of(question, r.config, r.layout).named(each.total)
    turned, tokens = sums.pop(INFLUENCE).double().unbind(-1)
    influence, similar = turned / tokens.clamp(min=1.0), similarities(sums)
    whole = all_kept(model)
    parts = [sub_model(whole, r.layout, similar, influence, d) for d in r.options.depths]
    return Memory(tuple(parts), memory.whose), found[0]


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """Every client trains its sub-model; before the first time, blocks are compared."""
    if not memory.depths:
        memory, asked = yield from _measured(model, memory, r)
        if not memory.depths:
            return Trained(None, asked)
    out = yield from trained_by_part(model, r, memory.depths, memory.whose)
    return Trained(out.model, out.changes, memory)


def _own(model: Model, memory: Memory, partition: int) -> Model:
    return part_of_client(model, memory.depths, memory.whose, partition) if memory.depths else model


METHOD = Method(
    "clients train sub-models of whole blocks, one of each group of similar blocks",
    "FedPruner, Wu et al. 2025, arXiv 2508.17209, read in its beginning; groups by average linkage",
    tune=_trained,
    before=thin,
    memory=Memory,
    init=_init,
    options=Options,
    own=_own,
    apart=True,
    parts=lambda options: options.depths,
    conflicts=lambda config, options: depth_conflicts(config, options.depths),
    usual={"sparsity": 0.0},
)
