"""SCAFFOLD: control variates take from a client's steps what is its own and not the cohort's.

Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, option II. Client i goes along
g - c_i + c in place of its gradient g; after K steps at rate η that took its weights from x to y it
keeps c_i+ = c_i - c + (x - y) / (K η), the mean of its own gradients on the way. The server holds
c, the mean of all c_i: it grows by |S|/N times the mean of c_i+ - c_i over the cohort S.

As c_i+ - c_i = -c - (y - x) / (K η), the server takes that mean from the mean change, which it has:
clients send nothing more, and c_i stays with them. Weights that are removed have no variate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from fedprune.tensors.named import Masks, Tensors, masked


def correction(common: Tensors, own: Tensors, masks: Masks) -> Tensors:
    """What is added to a client's gradients: c - c_i; nothing before there are any variates."""
    sums = {n: common.get(n, 0.0) - own.get(n, t * 0.0) for n, t in {**common, **own}.items()}
    return masked(sums, masks)


def own_variate(
    own: Tensors, common: Tensors, moved: Mapping[str, Tensor], masks: Masks, span: float
) -> Tensors:
    """A client's variate after a round: c_i - c + (x - y) / (K η).

    Args:
        own: c_i; empty before the first.
        common: c, as the client was sent it.
        moved: y - x, of the parameters.
        masks: True = kept.
        span: K η; at 0 nothing moved, and the variate stays.
    """
    if not span:
        return own
    fresh = {n: own.get(n, 0.0) - common.get(n, 0.0) - change / span for n, change in moved.items()}
    return masked(fresh, masks)


def common_variate(
    common: Tensors, moved: Mapping[str, Tensor], masks: Masks, span: float, share: float
) -> Tensors:
    """The server's variate after a round: c + |S|/N · mean(c_i+ - c_i), float32.

    Args:
        common: c; empty before the first.
        moved: the cohort's mean change of the parameters, float64.
        masks: True = kept.
        span: K η; at 0 nothing moved, and the variate stays.
        share: |S|/N, the part of all clients that answered.
    """
    if not span:
        return common
    fresh = {
        n: (1.0 - share) * common.get(n, change * 0.0).double() - share * change / span
        for n, change in moved.items()
    }
    return masked({n: t.float() for n, t in fresh.items()}, masks)


def parameters_in(state: Mapping[str, Tensor], statistics: Collection[str]) -> Tensors:
    """The parameters of a state: all but its statistics, which no step moves."""
    return {n: t for n, t in state.items() if n not in statistics}
