"""Rules for the clients' changes that some of the clients cannot bend as they like.

A mean goes wherever a single client wants it to. These rules look at the changes one by one, so the
server holds all of them (4 bytes a value and client), and no secure sum can feed them. Every client
counts alike: how many labels it has is its own word.

Weights, and statistics such as BatchNorm's, are judged apart: neither hides behind the scale of the
other. What is not protected: a minority that stays close to the others (Baruch et al. 2019, arXiv
1902.06156), and clients whose honest data differ much from most others' count less, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fedprune.learning.robust_rules import ROBUST, VALUES_WIDENED, Rule, nearest_shares
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Tensors, scattered

_Read = Callable[[Tensor], Tensor]
"""From positions to the changes there, (clients, positions) float64."""


def robust_change(
    rule: str,
    singles: Tensor,
    byzantine: int,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    layout: Layout,
) -> Tensor:
    """One change of many: flat float64 on the kept coordinates.

    Args:
        rule: a name in `ROBUST`, but none.
        singles: (clients, values) float32, the changes on the kept coordinates; finite.
        byzantine: how many of them may be anything, for the rules that take a number.
        weights: the global weights that they are changes of.
        masks: the mask that was sent to the clients.
        layout: the model's layout.
    """
    its = ROBUST[rule]
    where = scattered(torch.arange(singles.shape[1]), layout.shapes, masks)
    numbers = torch.zeros(singles.shape[1], dtype=torch.bool)
    for name in layout.statistics:
        numbers[where[name].reshape(-1)] = True
    out = torch.empty(singles.shape[1], dtype=torch.float64)
    for group in (~numbers, numbers):
        at = group.nonzero().reshape(-1)
        read = _reading(its, singles, at, byzantine)
        out[at] = _of_group(its, read, at, byzantine)
    if its.middle is not None and layout.variances:
        out = _with_variances(its.middle, read, byzantine, out, weights, where, layout)
    return out


def _reading(rule: Rule, singles: Tensor, at: Tensor, byzantine: int) -> _Read:
    """What a rule sees at these positions: the changes, or their mixtures."""

    def plain(some: Tensor) -> Tensor:
        return singles[:, some].double()

    if not rule.mixes or not at.numel():
        return plain
    shares = nearest_shares(lambda: map(plain, at.split(VALUES_WIDENED)), byzantine)
    return lambda some: shares @ plain(some)


def _of_group(rule: Rule, read: _Read, at: Tensor, byzantine: int) -> Tensor:
    def blocks() -> Iterator[Tensor]:
        return map(read, at.split(VALUES_WIDENED))

    if not at.numel():
        return torch.empty(0, dtype=torch.float64)
    if rule.middle is not None:
        return torch.cat([rule.middle(block, byzantine) for block in blocks()])
    assert rule.factors is not None  # one or the other
    factors = rule.factors(blocks, byzantine)
    return torch.cat([factors @ block for block in blocks()])


def _with_variances(
    middle: Callable[[Tensor, int], Tensor],
    read: _Read,
    byzantine: int,
    out: Tensor,
    weights: Mapping[str, Tensor],
    where: Tensors,
    layout: Layout,
) -> Tensor:
    """The change, with second moments from the middle of the clients' variances.

    They travel as second moments, whose middle beside the middle of the means would be no
    variance: it may be negative. Factors have no such trouble, a mixture's moments are moments.
    """
    for variance, mean in layout.variances.items():
        at, its = where[variance].reshape(-1), where[mean].reshape(-1)
        old_mean = weights[mean].double().reshape(-1)
        old = weights[variance].double().reshape(-1) + old_mean**2
        means = old_mean + read(its)
        variances = (old + read(at) - means**2).clamp_min(0.0)
        out[at] = middle(variances, byzantine) + (old_mean + out[its]) ** 2 - old
    return out
