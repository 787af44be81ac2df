"""Averaging as sums: Σ n_k (w_k - w_sent) / Σ n_k on the kept coordinates, in float64.

FedAvg (McMahan et al. 2017, arXiv 1602.05629, algorithm 1) written on the change, so that clipping,
noise and fixed point can act on what is released; with a server learning rate as in Reddi et al.
2021, arXiv 2003.00295 (server SGD).

BatchNorm's running variances do not average: the variance of a mixture also holds the spread of
its means. They travel as second moments E[x²] = var + mean², which do. A server learning rate above
1 goes beyond the mean change; statistics do not: a moment that is extrapolated is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedprune.options.plugins import table_in
from fedprune.structure.layout import Layout
from fedprune.tensors.named import (
    Tensors,
    gathered,
    kept_in,
    kept_values,
    laid_out,
    masked,
    scattered,
)


def to_moments(tensors: Mapping[str, Tensor], layout: Layout) -> Tensors:
    """The same tensors with running variances turned into second moments."""
    moments = dict(tensors)
    for variance, mean in layout.variances.items():
        # In float64: a small variance beside a large mean would be lost in float32.
        moments[variance] = tensors[variance].double() + tensors[mean].double() ** 2
    return moments


_ROUNDING = 1e-5
"""Part of a second moment by which a variance may be negative because of float32."""


def from_moments(
    tensors: Mapping[str, Tensor], layout: Layout, instead: Mapping[str, Tensor] | None = None
) -> Tensors:
    """The inverse of `to_moments`; a variance that float32 made negative becomes 0.

    One that is more negative than that, as a change sent in few bits makes some, becomes what it is
    in `instead`, where that is given.
    """
    out = dict(tensors)
    for variance, mean in layout.variances.items():
        found = tensors[variance] - tensors[mean] ** 2
        out[variance] = found.clamp(min=0.0)
        if instead is not None:
            lost = found < -_ROUNDING * tensors[variance].abs()
            out[variance] = torch.where(lost, instead[variance].to(found.dtype), out[variance])
    return out


def change(tuned: Mapping[str, Tensor], sent: Mapping[str, Tensor], layout: Layout) -> Tensors:
    """What one client releases of its training: new minus sent, in float32."""
    after, before = to_moments(tuned, layout), to_moments(sent, layout)
    return {name: (after[name] - before[name]).float() for name in after}


def flat_change(
    tuned: Mapping[str, Tensor],
    sent: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    layout: Layout,
    whole: Tensor | None = None,
) -> Tensor:
    """The same on the kept coordinates, as one flat tensor in the order of `gathered`.

    In one memory, tensor by tensor, where the state is of float32; BatchNorm's variances change as
    moments. `whole`, where it is given, is `sent` in that order, of which no mask removes anything.
    """
    types = {t.dtype for t in tuned.values()} | {t.dtype for t in sent.values()}
    if types != {torch.float32}:
        return gathered(change(tuned, sent, layout), masks)
    moved = gathered(tuned, masks if whole is None else {})
    if whole is not None:
        moved.sub_(whole)
    if whole is not None and not layout.variances:
        return moved
    start = 0
    for name in sorted(tuned):
        before = kept_values(sent[name], masks.get(name))
        part = moved[start : start + before.numel()]
        start += before.numel()
        if name in layout.variances:
            few = [{n: t[n] for n in (name, layout.variances[name])} for t in (tuned, sent)]
            moments = change(few[0], few[1], _those((name,), layout))
            part.copy_(kept_values(moments[name], masks.get(name)))
        elif whole is None:
            part.sub_(before)
    return moved


@dataclass(frozen=True)
class Average:
    """`mean(Σ n_k m_k w_k, Σ n_k m_k, Σ n_k)`, elementwise."""

    summary: str
    source: str
    mean: Callable[[Tensor, Tensor, float], Tensor]


def _over_those_who_kept(sums: Tensor, held: Tensor, _weight: float) -> Tensor:
    return torch.where(held > 0, sums / held.clamp_min(1e-300), 0.0)


AVERAGES: dict[str, Average] = {
    "fedavg": Average(
        "divided by all clients' labels: a weight that few kept shrinks",
        "McMahan et al. 2017, arXiv 1602.05629, algorithm 1",
        lambda sums, _held, weight: sums / weight,
    ),
    "l0-mean": Average(
        "divided by the labels of the clients that kept the weight",
        "FedSpaLLM, Bai et al. 2025, arXiv 2410.14852, eq. 5; FedDST, arXiv 2112.09824",
        _over_those_who_kept,
    ),
}


def averages_of(plugin: str) -> dict[str, Average]:
    """Every average by name; a plug-in's (its table ``AVERAGES``) come last."""
    return {**AVERAGES, **table_in(plugin, "AVERAGES", Average)}


def averaged(
    weights: Mapping[str, Tensor],
    total: Tensor,
    weight: float,
    masks: Mapping[str, Tensor],
    layout: Layout,
    server_lr: float,
    *,
    held: Tensor | None = None,
    rule: str = "fedavg",
    table: Mapping[str, Average] = AVERAGES,
) -> Tensors:
    """The next global weights, float32, exactly 0.0 where a mask is False.

    Args:
        weights: the current global weights.
        total: flat float64 Σ n_k · change_k on the kept coordinates.
        weight: Σ n_k.
        masks: the mask that was sent to the clients.
        layout: the model's layout.
        server_lr: factor on the mean change; on that of statistics at most 1.
        held: where clients pruned by masks m_k of their own: flat float64 Σ n_k · m_k on the
            prunable kept coordinates; their changes are then of the kept ones only.
        rule: a name in the table; matters with `held` only.
        table: averages by name.
    """
    if held is None:
        return _in_pieces(weights, total, weight, masks, layout, server_lr)
    double = {name: w.double() for name, w in masked(weights, masks).items()}
    before = to_moments(double, layout)
    mean = scattered(total / weight, layout.shapes, masks)
    sums = scattered(total, layout.shapes, masks)
    for n, h in scattered(held, {n: m.shape for n, m in masks.items()}, masks).items():
        mean[n] = table[rule].mean(before[n] * h + sums[n], h, weight) - before[n]
    after = {n: w + _rate(n, layout, server_lr) * mean[n] for n, w in before.items()}
    return {name: w.float() for name, w in from_moments(after, layout, weights).items()}


def _those(some: Sequence[str], layout: Layout) -> Layout:
    """The layout with the variances among these alone."""
    return replace(layout, variances={n: mean for n, mean in layout.variances.items() if n in some})


def _rate(name: str, layout: Layout, server_lr: float) -> float:
    return min(server_lr, 1.0) if name in layout.statistics else server_lr


_AT_ONCE = 2**18
"""Values that are averaged at a time: in float64 there are several copies of them."""


def _in_pieces(
    weights: Mapping[str, Tensor],
    total: Tensor,
    weight: float,
    masks: Mapping[str, Tensor],
    layout: Layout,
    server_lr: float,
) -> Tensors:
    """The next weights, some values after the others: few are in float64, beside the sum.

    A variance waits for its mean.
    """
    names = sorted(weights)
    sizes = [kept_in(weights[n], masks.get(n)) for n in names]
    places = dict(zip(names, total.split(sizes), strict=True))
    out = laid_out({n: w.shape for n, w in weights.items()})
    for pair in layout.variances.items():
        those = _those(pair, layout)
        before = to_moments({n: weights[n].double() for n in pair}, those)
        mean = {n: places[n].view(weights[n].shape) / weight for n in pair}
        after = {n: w + _rate(n, layout, server_lr) * mean[n] for n, w in before.items()}
        for name, value in from_moments(after, those, weights).items():
            out[name].copy_(value)
    paired = {n for pair in layout.variances.items() for n in pair}
    for name in [n for n in names if n not in paired]:
        w, mask, at = weights[name].reshape(-1), masks.get(name), 0
        rate, flags = _rate(name, layout, server_lr), None if mask is None else mask.reshape(-1)
        for start in range(0, len(w), _AT_ONCE):
            here = slice(start, start + _AT_ONCE)
            own = {} if flags is None else {name: flags[here]}
            before = masked({name: w[here]}, own)
            end = at + kept_in(w[here], own.get(name))
            mean = scattered(places[name][at:end] / weight, {name: w[here].shape}, own)
            out[name].view(-1)[here] = before[name].double() + rate * mean[name]
            at = end
    return out
