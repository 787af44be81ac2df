"""SparseGPT: removes weights column by column and lets the rest of the row make up for each.

Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1. The clients' Σ x xᵀ add up, so this is
the centralised method on the pooled data, behind the same prefix. Departures: what was removed
before stays removed, and a tensor loses exactly its number of weights, dealt to the blocks of
columns in proportion to what is alive in them. An input that no weight of a tensor reads any more
is no part of its Hessian. Of a model that was cut everything is counted in the shapes before, so
that the choice is the same whether what went is still there as zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedprune.scores.input_sums import factored, mean_inputs, summed_of
from fedprune.scores.inputs import inputs_of, rows_of
from fedprune.scores.score import Evidence
from fedprune.selection.patterns import pattern_counts
from fedprune.selection.ranking import Layer, drop
from fedprune.structure.layout import as_inputs, as_rows, from_rows
from fedprune.tensors.named import Masks, Tensors

BLOCK = 128  # Columns whose mask is chosen at once (B_s in algorithm 1)
_DAMPENING = 0.01  # Part of the mean of the Hessian's diagonal that is added to it
PerGroup = tuple[int, int]  # N of M: N stay of every M neighbours along the inputs

Groups = list[tuple[int, int]]
"""How wide each group of neighbouring columns is, in their order, and how many of it go."""


def obs(evidence: Evidence) -> Tensors:
    """w²/[H⁻¹]_jj: what removing one weight costs when the others make up for it, float64.

    Hassibi and Stork 1993 (OBS), with H the mean of x xᵀ; as in SparseGPT, sect. 3. What
    clients vote with; the step itself ranks by the weights as they are by then.
    """
    if evidence.layout.origin is not None:
        return evidence.layout.from_origin(obs(_in_origin(evidence)))
    scores: Tensors = {}
    for name, w in evidence.weights.items():
        rows = as_rows(evidence.layout, name, w.double())
        alive = as_rows(evidence.layout, name, evidence.masks[name])
        hessian, dead = _damped(mean_inputs(evidence, name), alive)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        saliency = (rows.square() / inverse.diagonal()).masked_fill(dead, 0.0)
        scores[name] = from_rows(evidence.layout, name, saliency).contiguous()
    return scores


def step(
    evidence: Evidence, sparsities: Mapping[str, float], per_group: PerGroup | None
) -> tuple[Masks, Tensors]:
    """Masks and new weights of the tensors to prune.

    Args:
        evidence: with Σ x xᵀ of every tensor in `evidence.weights`.
        sparsities: of each tensor, of its original count; exactly floor(s·n + ½) are removed, or
            what was removed before if that is more.
        per_group: (N, M) to keep N of every M along the inputs instead; less where the sparsity is
            below the pattern's, and for a shorter last group (`fedprune.selection.units`).

    Returns:
        Masks that keep nothing the masks before did not, and weights, 0.0 where removed.
    """
    if evidence.layout.origin is not None:
        masks, weights = step(_in_origin(evidence), sparsities, per_group)
        return evidence.layout.from_origin(masks), evidence.layout.from_origin(weights)
    masks, weights = {}, {}
    for name, w in evidence.weights.items():
        layout = evidence.layout
        rows = as_rows(layout, name, w.double())
        alive = as_rows(layout, name, evidence.masks[name])
        wanted = math.floor(sparsities[name] * w.numel() + 0.5)
        more = max(0, wanted - int((~alive).sum()))
        if per_group is None:
            kept, new = prune_rows(rows, alive, mean_inputs(evidence, name), more)
        else:
            groups = _groups(as_inputs(layout, name, w).shape[1], per_group, sparsities[name])
            kept, new = _patterned(rows, alive, mean_inputs(evidence, name), groups)
        masks[name] = from_rows(layout, name, kept).contiguous()
        weights[name] = from_rows(layout, name, new).contiguous().to(w.dtype)
    return masks, weights


def _patterned(
    rows: Tensor, alive: Tensor, hessian: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """A matrix without what the groups lose, which lie along the inputs at each place of a kernel.

    A convolution's columns are channels times places; here they are taken place by place.
    """
    inputs = sum(width for width, _ in groups)
    order = torch.arange(rows.shape[1]).view(inputs, -1).t().reshape(-1)
    turned = rows[:, order], alive[:, order], hessian[order][:, order]
    kept, new = prune_rows(*turned, 0, groups * (len(order) // inputs))
    return kept[:, order.argsort()], new[:, order.argsort()]


def _groups(inputs: int, per_group: PerGroup, sparsity: float) -> Groups:
    m = per_group[1]
    gone = pattern_counts(inputs, *per_group, sparsity).tolist()
    return [(min(m, inputs - i * m), count) for i, count in enumerate(gone)]


def _in_origin(evidence: Evidence) -> Evidence:
    """The same in the shapes before the model was cut: where it was, nothing is alive."""
    layout, sums = evidence.layout, dict(evidence.sums)
    assert layout.origin is not None  # else there is nothing to do
    there = {n: torch.ones_like(w, dtype=torch.bool) for n, w in evidence.weights.items()}
    weights, masks, there = (
        {n: t for n, t in layout.in_origin(part).items() if n in there}
        for part in (evidence.weights, evidence.masks, there)
    )
    for name, was in there.items():
        columns = as_rows(layout.origin.layout, name, was).any(0).nonzero().squeeze(1)
        found, sums[rows_of(name)] = summed_of(evidence, name)
        size = as_rows(layout.origin.layout, name, was).shape[1]
        whole = found.new_zeros(size, size)
        whole[columns[:, None], columns] = found
        sums[inputs_of(name)] = whole
    return replace(evidence, weights=weights, masks=masks, sums=sums, layout=layout.origin.layout)


def prune_rows(
    w: Tensor, alive: Tensor, hessian: Tensor, more: int, groups: Groups | None = None
) -> tuple[Tensor, Tensor]:
    """One matrix without `more` further weights (or N of M of them), the rest adapted.

    Args:
        w: (out, columns), float64.
        alive: the same shape, what is there.
        hessian: (columns, columns), Σ or mean of x xᵀ; its scale does not matter.
        more: how many of the living go; not looked at with `groups`.
        groups: how many are gone of every row's groups.

    Returns:
        The mask, and the weights, both (out, columns).
    """
    system, dead = _damped(hessian, alive)
    del hessian  # of a wide layer it takes as much as the layer, or more
    system = factored(system)
    system = torch.cholesky_inverse(system)
    upper = factored(system, upper=True)
    del system
    w, mask = w.clone(), alive.clone()
    ends = _ends(groups or [])
    seen, there = 0, int(alive.sum())
    for block in _blocks(w.shape[1], ends):
        if groups is None:
            before, seen = seen, seen + int(alive[:, block].sum())
            share = _share(more, seen, there) - _share(more, before, there)
            saliency = _saliency(w, upper, dead, block)
            mask[:, block] = _without_lowest(saliency, alive[:, block], share)
        _sweep(w, mask, upper, dead, block, ends)
    return mask, w


def _ends(groups: Groups) -> dict[int, tuple[int, int]]:
    """Of each group by its first column: the column after it, and how many of it go."""
    ends, start = {}, 0
    for width, gone in groups:
        ends[start] = start + width, gone
        start += width
    return ends


def _blocks(columns: int, ends: Mapping[int, tuple[int, int]]) -> Iterator[slice]:
    """Blocks of at most `BLOCK` columns, of whole groups where there are any; one at least."""
    start = stop = 0
    for end in [end for end, _ in ends.values()] or [*range(BLOCK, columns, BLOCK), columns]:
        if end - start > BLOCK and stop > start:
            yield slice(start, stop)
            start = stop
        stop = end
    yield slice(start, stop)


def _share(more: int, seen: int, there: int) -> int:
    """Of `more` removals those due within the first `seen` of the living, rounded."""
    return (2 * more * seen + there) // (2 * there) if there else 0


def _damped(hessian: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """A Hessian that can be inverted, and which inputs are always 0 or not read, (columns,)."""
    damped, unread = hessian.double().clone(), ~alive.any(0)
    damped[unread] = 0.0
    damped[:, unread] = 0.0
    dead = damped.diagonal() == 0
    damped.diagonal()[dead] = 1.0
    damped.diagonal().add_(_DAMPENING * damped.diagonal().mean())
    return damped, dead


def _saliency(w: Tensor, upper: Tensor, dead: Tensor, columns: slice) -> Tensor:
    """Error that removing each weight makes, given that the columns before are done."""
    cost = (w[:, columns] / upper.diagonal()[columns]).square()
    return cost.masked_fill(dead[columns], 0.0)  # a weight whose input is always 0 is of no use


def _without_lowest(saliency: Tensor, alive: Tensor, count: int) -> Tensor:
    layer = Layer(saliency.flatten().cpu().numpy(), None, alive.flatten().cpu().numpy(), 0)
    return torch.from_numpy(drop([layer], count)[0]).reshape(alive.shape).to(alive.device)


def _sweep(
    w: Tensor,
    mask: Tensor,
    upper: Tensor,
    dead: Tensor,
    block: slice,
    ends: Mapping[int, tuple[int, int]],
) -> None:
    """Removes what the mask says from a block's columns, in place; all later columns adapt."""
    errors = torch.zeros_like(w[:, block])
    for j in range(block.start, block.stop):
        if j in ends:
            group = slice(j, ends[j][0])
            saliency = _saliency(w, upper, dead, group)
            mask[:, group] &= _n_of_m(saliency, mask[:, group], ends[j][1])
        left = w[:, j] * mask[:, j]
        error = (w[:, j] - left) / upper[j, j]
        w[:, j : block.stop] -= torch.outer(error, upper[j, j : block.stop])
        w[:, j] = left
        errors[:, j - block.start] = error
    w[:, block.stop :] -= errors @ upper[block, block.stop :]


def _n_of_m(saliency: Tensor, alive: Tensor, gone: int) -> Tensor:
    """Every row without its lowest; what is removed already ranks below everything."""
    order = saliency.masked_fill(~alive, -1.0).argsort(dim=1, stable=True)
    return torch.ones_like(alive).scatter(1, order[:, :gone], False)
