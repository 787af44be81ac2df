"""DepthFL without exits: clients of unequal capacity train the first blocks of one model.

Kim et al. 2023, ICLR, "DepthFL: depthwise federated learning for heterogeneous clients". Client k
has a depth d_k: it trains the model without its deepest blocks, of each stack (a decoder, an
encoder) the first d_k, and the same head of output. The server averages every weight over the
clients whose part has it:

    w_j = Σ_k n_k m_kj w_kj / Σ_k n_k m_kj,   m_kj = 1 where block(j) < d_k, and outside of blocks.

Partition p has the depth number p mod their number; a depth is a part of the blocks, rounded up.

Where it departs from the paper, which was read in its abstract and in its beginning: **without
exits**. There every depth has a classifier of its own, a client trains all of its classifiers at
once, and they teach each other (mutual self-distillation); here all depths share the model's one
head, which a residual stream reaches from every block, and no depth teaches another. A part is a
mask, so it saves bytes, and no time; what the biases of a block that is not there add stays.
Models without blocks are refused. Beside it the model can be pruned as in any run (``--sparsity``,
0 unless given).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from fedprune.methods.apart import depth_conflicts
from fedprune.methods.global_mask import thin
from fedprune.methods.growing import all_kept
from fedprune.methods.holders import part_of_client, trained_by_part
from fedprune.methods.method import Method, Trained
from fedprune.options.option import option
from fedprune.options.refusal import ConfigError
from fedprune.options.section import Section
from fedprune.server.round import Round, Talk
from fedprune.server.state import Model
from fedprune.structure.groups import stacks_of
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks


class Options(Section):
    """What ``--method-options`` takes."""

    depths: tuple[float, ...] = option(
        "method", "parts of the blocks that clients train, from above 0 to 1", (1.0, 0.75, 0.5)
    )


def first_blocks(masks: Masks, layout: Layout, depth: float) -> Masks:
    """The masks without the deepest blocks: of every stack so large a part stays, rounded up.

    `depth`: from above 0 to 1.
    """
    gone = set[str]()
    for blocks in stacks_of(layout):
        gone.update(t for block in blocks[ceil(depth * len(blocks)) :] for t in block.tensors)
    return {n: torch.zeros_like(m) if n in gone else m for n, m in masks.items()}


@dataclass(frozen=True)
class Memory:
    """The blocks of each depth, as masks that keep them whole, and whose depth devices decide."""

    depths: tuple[Masks, ...]
    whose: tuple[int, ...] = ()


def _init(model: Model, r: Round) -> Memory:
    """Which blocks there are at each depth.

    Raises:
        ConfigError: the model has no blocks.
    """
    if not r.layout.structure.blocks:
        why = "no blocks were recognised in this model, of which clients could train the first"
        raise ConfigError(f"method='depthfl': {why}; allowed: models with a stack of blocks")
    whole = all_kept(model)
    return Memory(tuple(first_blocks(whole, r.layout, d) for d in r.options.depths), r.plan.tiers)


def _own(model: Model, memory: Memory, partition: int) -> Model:
    return part_of_client(model, memory.depths, memory.whose, partition)


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """Every client trains blocks up to its own depth."""
    return (yield from trained_by_part(model, r, memory.depths, memory.whose))


METHOD = Method(
    "clients of unequal capacity train the first blocks of one model, as many as they can",
    "DepthFL, Kim et al. 2023 (ICLR), read in its beginning; without exits and self-distillation",
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
