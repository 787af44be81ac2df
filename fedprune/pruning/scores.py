"""How important a weight is: additive statistics on the clients, a score on the server.

A score is a `Score` value and a line in `SCORES`. Higher = keep. Every statistic is taken in eval
mode at the weights that were sent and leaves the model bit-identical. An *additive* statistic is a
sum over examples (label tokens, for a language model), so its federated score equals the score of
the pooled data of the partitions that answered; one that is not says ``per_client`` in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.tasks.task import Loss, Part
from fedprune.tensors import Tensors, state_of


@dataclass(frozen=True)
class Probe:
    """What a statistic is taken from: a model in eval mode and one client's training part.

    Attributes:
        model: holds the weights that were sent; must be left bit-identical.
        prunable: names of the tensors to score.
        batches: the client's training part, once through.
        loss: sums over a batch.
    """

    model: nn.Module
    prunable: Sequence[str]
    batches: Iterable[Part]
    loss: Callable[[nn.Module, Part], Loss]


@dataclass(frozen=True)
class Evidence:
    """What the server scores with.

    Attributes:
        sums: the clients' statistics added up, float64; empty for a score that asks nobody.
        count: labels that the statistics were summed over.
        weights: the current weights of the prunable tensors.
        generator: seeded for this round.
    """

    sums: Tensors
    count: float
    weights: Tensors
    generator: torch.Generator


@dataclass(frozen=True)
class Score:
    """One way to say how important a weight is.

    Attributes:
        summary: one line for ``--list``, with the formula.
        source: where it is from.
        finalise: the score of every prunable tensor from the evidence.
        statistics: one client's summand; None: the score asks nobody.
        additive: the statistic is a sum over examples.
    """

    summary: str
    source: str
    finalise: Callable[[Evidence], Tensors]
    statistics: Callable[[Probe], Tensors] | None = None
    additive: bool = True


def summed_gradient(probe: Probe) -> Tensors:
    """Σ g over the client's labels: one forward and one backward pass, nothing left behind."""
    parameters = {name: dict(probe.model.named_parameters())[name] for name in probe.prunable}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for batch in probe.batches:
        total = probe.loss(probe.model, batch).total
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:  # a layer that the loss does not reach has gradient zero
                sums[name] += gradient
    return sums


def summed_taylor(probe: Probe) -> Tensors:
    """Σ w·g over the client's labels."""
    weights = state_of(probe.model)
    return {name: weights[name] * g for name, g in summed_gradient(probe).items()}


def absolute_gradient(probe: Probe) -> Tensors:
    """|Σ g| of this client: absolute before the clients are added, so not additive."""
    return {name: g.abs() for name, g in summed_gradient(probe).items()}


def absolute_taylor(probe: Probe) -> Tensors:
    """|Σ w·g| of this client: absolute before the clients are added, so not additive."""
    return {name: t.abs() for name, t in summed_taylor(probe).items()}


def _mean(evidence: Evidence) -> Tensors:
    return {name: s / evidence.count for name, s in evidence.sums.items()}


def _mean_magnitude(evidence: Evidence) -> Tensors:
    return {name: m.abs() for name, m in _mean(evidence).items()}


def _negative_mean(evidence: Evidence) -> Tensors:
    return {name: -m for name, m in _mean(evidence).items()}


def _magnitude(evidence: Evidence) -> Tensors:
    return {name: w.abs() for name, w in evidence.weights.items()}


def _random(evidence: Evidence) -> Tensors:
    def drawn(w: Tensor) -> Tensor:
        return torch.rand(w.shape, generator=evidence.generator, dtype=torch.float64)

    return {name: drawn(w) for name, w in evidence.weights.items()}


SCORES: dict[str, Score] = {
    "taylor": Score(
        "|Σ w·g|: first-order change of the pooled loss if the weight went",
        "Molchanov et al. 2017, arXiv 1611.06440, eq. 7, on single weights, clients summed first",
        _mean_magnitude,
        summed_taylor,
    ),
    "taylor_signed": Score(
        "-Σ w·g: the same with its sign; a weight whose removal lowers the loss goes first",
        "Mozer and Smolensky 1989 (skeletonization), on single weights",
        _negative_mean,
        summed_taylor,
    ),
    "taylor_abs_per_client": Score(
        "Σ_k |Σ w·g of client k|: absolute per client, so federated differs from pooled",
        "SSFL, Flower baseline (clients' |w·g| averaged); Lee et al. 2019, arXiv 1810.02340",
        _mean_magnitude,
        absolute_taylor,
        additive=False,
    ),
    "gradient": Score(
        "|Σ g|: size of the pooled gradient",
        "the quantity regrown by Evci et al. 2020 (RigL), arXiv 1911.11134, here to keep",
        _mean_magnitude,
        summed_gradient,
    ),
    "gradient_abs_per_client": Score(
        "Σ_k |Σ g of client k|: absolute per client, so federated differs from pooled",
        "mean of absolutes as in SSFL, without the weight",
        _mean_magnitude,
        absolute_gradient,
        additive=False,
    ),
    "magnitude": Score(
        "|w| of the global model: asks nobody", "Han et al. 2015, arXiv 1506.02626", _magnitude
    ),
    "random": Score("uniform noise, new each time: asks nobody", "the control", _random),
}
