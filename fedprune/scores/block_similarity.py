"""Block similarity: linear CKA between what two blocks give out, from sums that add up.

Kornblith et al. 2019, arXiv 1905.00414, section 3 (linear kernel). With X_i the outputs of block i,
a row a token, and C_ij = X_iᵀX_j - n·mean(X_i)ᵀmean(X_j),

    CKA_ij = |C_ij|² / (|C_ii|·|C_jj|), norms of Frobenius.

The clients' sums of X_iᵀX_j and of X_i add up, so that the similarity is that of the pooled tokens,
padding included. Where a block gives out more than `PROJECTED` numbers a token, they are projected
to so many by two random matrices P and Q, the same for all blocks and clients, with entries of mean
0 and variance 1/PROJECTED: |PᵀC_ijQ|² has the mean |C_ij|², and the similarity is an estimate.
Blocks of different stacks, whose tokens are not the same, are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedprune.randomness import generator
from fedprune.scores.block_influence import by_name
from fedprune.scores.score import Evidence, Probe, Shapes, Statistic, unrecognised
from fedprune.streaming.blocks import send_through
from fedprune.structure.groups import Block, stacks_of
from fedprune.structure.layout import Layout
from fedprune.tensors.hooks import removed_after
from fedprune.tensors.named import Masks, Tensors

SIMILARITY = "block_similarity"
"""The summands: of every stack a square of products of its blocks' outputs, bordered by sums."""

PROJECTED = 64
"""Numbers of a block's output for a token that are multiplied with one another, at most."""


def _shapes(layout: Layout, _names: Sequence[str], _unit: str, _probes: int) -> Shapes:
    stacks = stacks_of(layout)
    if not stacks:
        raise unrecognised(SIMILARITY, "blocks")
    sides = [len(blocks) * PROJECTED + 1 for blocks in stacks]
    return {f"{SIMILARITY} {i}": torch.Size([side, side]) for i, side in enumerate(sides)}


@torch.no_grad()
def _collect(probe: Probe) -> Tensors:
    stacks = stacks_of(probe.layout)
    shapes = _shapes(probe.layout, probe.prunable, probe.unit, probe.probes)
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    waiting: list[list[list[Tensor]]] = [[[] for _ in blocks] for blocks in stacks]

    def hook_of(stack: int, block: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, y: object) -> None:
            waiting[stack][block].append(_tokens(y))
            while all(waiting[stack]):
                outputs = [those.pop(0) for those in waiting[stack]]
                name = f"{SIMILARITY} {stack}"
                sums[name] += _products(outputs, probe.seed).to(sums[name].device)

        return hook

    hooks = [
        probe.model.get_submodule(block.path).register_forward_hook(hook_of(i, j))
        for i, blocks in enumerate(stacks)
        for j, block in enumerate(blocks)
    ]
    with removed_after(hooks):
        send_through(probe.model, probe.batches, probe.loss)
    return sums


def _tokens(y: object) -> Tensor:
    """A block's output, a row a token, float64."""
    first = y[0] if isinstance(y, tuple | list) else y
    assert isinstance(first, Tensor)  # a block gives its hidden states, alone or first
    return first.detach().double().reshape(-1, first.shape[-1])


def _products(outputs: Sequence[Tensor], seed: int) -> Tensor:
    """Σ over tokens of what the blocks give out, times the same; ones stand last."""
    ones = outputs[0].new_ones(len(outputs[0]), 1)
    left, right = (
        torch.cat([*(x @ _projection(x, seed, side) for x in outputs), ones], 1) for side in (0, 1)
    )
    return left.T @ right


def _projection(x: Tensor, seed: int, side: int) -> Tensor:
    """From a row of x to `PROJECTED` numbers: the same ones and zeros, or random sums of more."""
    wide = x.shape[1]
    if wide <= PROJECTED:
        return torch.eye(wide, PROJECTED, dtype=x.dtype, device=x.device)
    gen = generator(seed, "projection", wide, side)
    drawn = torch.randn(wide, PROJECTED, generator=gen, dtype=torch.float64)
    return drawn.mul_(PROJECTED**-0.5).to(x.device)


def _operations(rows: Mapping[str, float], shapes: Shapes) -> float:
    """Of products of blocks' outputs; the rows of a layer are taken for the tokens."""
    return sum(2.0 * shape.numel() for shape in shapes.values()) * max(rows.values(), default=0.0)


ASK_BLOCK_SIMILARITY = Statistic(_collect, _shapes, passes="1 forward", products=_operations)


def similarities(sums: Tensors) -> list[Tensor]:
    """CKA of every two blocks of each stack, (blocks, blocks), 0 to 1; of constant outputs 0."""
    return [_similarity(sums[name]) for name in sorted(sums, key=lambda n: int(n.split()[-1]))]


def _similarity(sums: Tensor) -> Tensor:
    sums = sums.double()
    products, count = sums[:-1, :-1], sums[-1, -1].clamp(min=1.0)
    centred = products - torch.outer(sums[:-1, -1], sums[-1, :-1]) / count
    blocks = len(centred) // PROJECTED
    squares = centred.reshape(blocks, PROJECTED, blocks, PROJECTED).square().sum((1, 3))
    squares = (squares + squares.T) / 2
    norms = squares.diagonal().sqrt()
    scale = torch.outer(norms, norms)
    return torch.where(scale > 0, squares / scale.clamp(min=1e-300), 0.0).clamp(max=1.0)


def block_similarity(evidence: Evidence) -> Tensors:
    """1 - the largest CKA of its block with an earlier one of the stack; 0 of what is in none.

    A block of which nothing is left repeats what it is given, and is compared with none.
    """
    found = {n: t for n, t in evidence.sums.items() if n.startswith(SIMILARITY)}
    of_block = dict[str, float]()
    for blocks, like in zip(stacks_of(evidence.layout), similarities(found), strict=True):
        alive = torch.tensor([_is_alive(block, evidence.masks) for block in blocks])
        nearest = (like * alive).tril(-1).max(1).values.tolist()
        of_block |= {n: 1.0 - nearest[i] for i, b in enumerate(blocks) for n in b.tensors}
    return by_name(evidence, of_block)


def _is_alive(block: Block, masks: Masks) -> bool:
    return any(name not in masks or bool(masks[name].any()) for name in block.tensors)
