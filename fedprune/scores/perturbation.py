"""What the loss does when weights are removed at random, and what that says of each of them.

Every pattern removes each living weight with probability `REMOVED`, whatever happens to the others.
Both sides draw the same patterns from the seed of the round, so that a client sends one number a
pattern: how much its loss changed. The server takes, for every weight, the covariance of that
number with the weight's being removed, over its known variance: an unbiased estimate of the
*signed* mean difference between patterns with and without the weight (Horvitz and Thompson 1952,
with the mean over patterns taken off). Its absolute value, the score, is not unbiased: noise alone
makes it positive. `standard_error` says how much noise there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedprune.randomness import generator
from fedprune.scores.score import Evidence, Probe, Shapes, Statistic
from fedprune.structure.layers import parameters_of
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Tensors

REMOVED = 0.1  # Probability that a pattern removes a weight
CHANGES = "perturbation"  # The summand: Σ L(with the pattern) - L(without), for every pattern


def pattern(seed: int, index: int, name: str, layout: Layout) -> Tensor:
    """True where the pattern of this number removes a weight of the tensor.

    Of a model that was cut: what is left of the pattern of the one before.
    """
    gen = generator(seed, f"perturbation of {name}", index)
    whole = layout if layout.origin is None else layout.origin.layout
    gone = torch.rand(whole.shapes[name], generator=gen) < REMOVED
    return layout.from_origin({name: gone})[name]


def _shapes(_layout: Layout, _names: Sequence[str], _unit: str, probes: int) -> Shapes:
    return {CHANGES: torch.Size([probes])}


@torch.no_grad()
def _collect(probe: Probe) -> Tensors:
    parameters = parameters_of(probe.model, probe.prunable)
    sent = {name: p.clone() for name, p in parameters.items()}
    whole = probe.total_loss()
    changes = torch.zeros(probe.probes, dtype=torch.float64)
    try:
        for index in range(probe.probes):
            for name, p in parameters.items():
                gone = pattern(probe.seed, index, name, probe.layout).to(p.device)
                p.copy_(sent[name].masked_fill(gone, 0.0))
            changes[index] = probe.total_loss() - whole
    finally:
        for name, p in parameters.items():
            p.copy_(sent[name])
    return {CHANGES: changes}


ASK_PERTURBATION = Statistic(
    _collect, _shapes, passes="1 + probes forwards", forwards=lambda probes: 1.0 + probes
)


def effects(evidence: Evidence) -> Tensors:
    """Estimated change of the mean loss when a weight goes, signed, float64; 0 where it is gone."""
    totals = {n: torch.zeros(w.shape, dtype=torch.float64) for n, w in evidence.weights.items()}
    for _, name, part in _parts(evidence):
        totals[name] += part
    # One less, because the mean that was taken off is that of the same patterns.
    return {name: total / (_patterns(evidence) - 1) for name, total in totals.items()}


def standard_error(evidence: Evidence) -> Tensors:
    """Standard error of `effects`, from the spread over patterns."""
    count = _patterns(evidence)
    mean = {name: e * (count - 1) / count for name, e in effects(evidence).items()}
    spread = {name: torch.zeros_like(m) for name, m in mean.items()}
    for _, name, part in _parts(evidence):
        spread[name] += (part - mean[name]).square()
    return {name: (s / (count * (count - 1))).sqrt() for name, s in spread.items()}


def perturbation(evidence: Evidence) -> Tensors:
    """|`effects`|."""
    return {name: effect.abs() for name, effect in effects(evidence).items()}


def _patterns(evidence: Evidence) -> int:
    count = evidence.sums[CHANGES].numel()
    if count < 2:
        raise ValueError(f"probes={count}: one pattern has nothing to differ from; allowed: >= 2")
    return count


def _parts(evidence: Evidence) -> Iterator[tuple[int, str, Tensor]]:
    """What every pattern adds to the estimate of every tensor: (D - mean D)(Z - q) / (q(1 - q))."""
    changes = evidence.sums[CHANGES] / evidence.count
    centred = (changes - changes.mean()).tolist()
    for index, change in enumerate(centred):
        for name in evidence.weights:
            drawn = pattern(evidence.seed, index, name, evidence.layout).double() - REMOVED
            weight = change / (REMOVED * (1.0 - REMOVED))
            yield index, name, (drawn * weight).masked_fill_(~evidence.masks[name], 0.0)
