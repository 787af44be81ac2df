"""Rules that make one change of many: by the middle of each coordinate, or a factor a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

VALUES_WIDENED = 2**15
"""Values that are widened to float64 at a time, for all clients."""


Blocks = Callable[[], Iterator[Tensor]]
"""The changes as (clients, some values) float64, from the first value to the last."""


@dataclass(frozen=True)
class Rule:
    """One way to make one change of many.

    Attributes:
        summary: one line for ``--list``.
        source: where it is from.
        middle: from (clients, values) float64 and the number of Byzantine clients to (values,):
            every coordinate by itself.
        factors: from all values and that number to a factor for each client, (clients,) float64:
            the change is the sum of the clients' times their factors. None with `middle`.
        needs: from that number to the fewest answers; None: the rule takes no such number.
        mixes: the rule is for means: each change with those nearest to it.
    """

    summary: str
    source: str
    middle: Callable[[Tensor, int], Tensor] | None = None
    factors: Callable[[Blocks, int], Tensor] | None = None
    needs: Callable[[int], int] | None = None
    mixes: bool = False


def _median(changes: Tensor, _byzantine: int) -> Tensor:
    """The mean of the two middle values where their number is even."""
    ordered: Tensor = changes.sort(dim=0).values
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _trimmed_mean(changes: Tensor, byzantine: int) -> Tensor:
    ordered: Tensor = changes.sort(dim=0).values
    middle: Tensor = ordered[byzantine : len(ordered) - byzantine]
    return middle.mean(dim=0)


def _clipped(blocks: Blocks, _byzantine: int) -> Tensor:
    norms = torch.stack([block.square().sum(dim=1) for block in blocks()]).sum(dim=0).sqrt()
    shares = (_median(norms.unsqueeze(1), 0) / norms.clamp_min(1e-300)).clamp_max(1.0)
    return shares / len(norms)


def _products(blocks: Blocks) -> Tensor:
    """(clients, clients): products of the changes less their coordinate-wise median.

    From there a change that is 10^30 times the others' takes no digit of the distances between the
    others.
    """
    out: Tensor | None = None
    for block in blocks():
        apart = block - _median(block, 0)
        more = apart @ apart.T
        out = more if out is None else out + more
    assert out is not None  # there are values
    return out


def _distances(products: Tensor) -> Tensor:
    """(clients, clients): squared distances."""
    own = products.diagonal()
    return (own + own.unsqueeze(1) - 2.0 * products).clamp_min(0.0)


def nearest_shares(blocks: Blocks, byzantine: int) -> Tensor:
    """(clients, clients): what each client's n - f nearest weigh in its mixture.

    Algorithm 2 of the paper. A client is nearest to itself; of others at equal distances the one
    that comes first.
    """
    distances = _distances(_products(blocks)).fill_diagonal_(-1.0)
    n = len(distances)
    nearest = distances.argsort(dim=1, stable=True)[:, : n - byzantine]
    return torch.zeros_like(distances).scatter_(1, nearest, 1.0 / (n - byzantine))


_NEAR = 1e-6
"""Distance below which a client weighs no more: the smoothing (nu) of the paper's experiments."""


_STEPS = 1000
"""Steps at most; near the geometric median each makes the rest smaller by a fixed part."""


def _weiszfeld(blocks: Blocks, _byzantine: int) -> Tensor:
    """Algorithm 2 of the paper (smoothed Weiszfeld), every client's weight 1 / n.

    Departures: from the mean of the half of the clients nearest to the coordinate-wise median, and
    until the factors stay the same, not three steps from the mean: where a third of the clients are
    10^30 away, three steps lead nowhere.
    """
    products = _products(blocks)
    own = products.diagonal()
    n = len(own)
    near = own.argsort(stable=True)[: n // 2 + 1]
    factors = torch.zeros(n, dtype=torch.float64)
    factors[near] = 1.0 / len(near)
    for _ in range(_STEPS):
        to_all = products @ factors
        distances = (own - 2.0 * to_all + factors @ to_all).clamp_min(0.0).sqrt()
        weighted = 1.0 / distances.clamp_min(_NEAR)
        last, factors = factors, weighted / weighted.sum()
        if float((factors - last).abs().max()) < 1e-12:
            break
    return factors


def _multi_krum(blocks: Blocks, byzantine: int) -> Tensor:
    """Section 5 of the paper: the mean of the n - f with the lowest score.

    A client's score is the sum of its n - f - 2 smallest squared distances to others. Equal scores:
    the client that comes first.
    """
    distances = _distances(_products(blocks)).fill_diagonal_(float("inf"))
    n = len(distances)
    scores = distances.sort(dim=1).values[:, : n - byzantine - 2].sum(dim=1)
    chosen = scores.argsort(stable=True)[: n - byzantine]
    factors = torch.zeros(n, dtype=torch.float64)
    factors[chosen] = 1.0 / len(chosen)
    return factors


def _majority(byzantine: int) -> int:
    return 2 * byzantine + 1


def _of_nearest(rule: Rule, summary: str) -> Rule:
    """The rule for means of each change with those nearest to it."""
    source = "NNM, Allouah et al. 2023, arXiv 2302.01772, algorithm 2"
    return replace(rule, summary=summary, source=source, needs=_majority, mixes=True)


_TRIMMED = Rule(
    "coordinate-wise mean without the --byzantine largest and smallest",
    "Yin et al. 2018, arXiv 1803.01498, definition 2",
    middle=_trimmed_mean,
    needs=_majority,
)


_GEOMETRIC = Rule(
    "the point with the smallest sum of distances to the clients'",
    "RFA, Pillutla, Kakade and Harchaoui 2022, arXiv 1912.13445, algorithm 2",
    factors=_weiszfeld,
)


ROBUST: dict[str, Rule] = {
    "none": Rule(
        "the mean weighted by labels; one client alone can move it anywhere",
        "McMahan et al. 2017, arXiv 1602.05629",
    ),
    "median": Rule(
        "coordinate-wise median", "Yin et al. 2018, arXiv 1803.01498, definition 1", middle=_median
    ),
    "trimmed-mean": _TRIMMED,
    "clipped-mean": Rule(
        "mean after clipping each client's norm at the median of the norms",
        "Sun et al. 2019, arXiv 1911.07963, section 4",
        factors=_clipped,
    ),
    "geometric-median": _GEOMETRIC,
    "multi-krum": Rule(
        "mean of all but the --byzantine clients that are farthest from their nearest others",
        "Blanchard et al. 2017, arXiv 1703.02757, section 5",
        factors=_multi_krum,
        needs=lambda f: 2 * f + 3,
    ),
    "nearest-trimmed-mean": _of_nearest(
        _TRIMMED,
        "trimmed-mean of means: each change with the n - f nearest to it, f being --byzantine",
    ),
    "nearest-geometric-median": _of_nearest(
        _GEOMETRIC, "geometric-median of means: each change with the n - f nearest to it"
    ),
}


def byzantine_of(rule: str, cohort: int) -> int | None:
    """How many of a cohort a rule takes to be Byzantine: three of ten; None: it takes no number."""
    needs = ROBUST[rule].needs
    return needs and max(1, min(3 * cohort // 10, most_byzantine(needs, cohort)))


def fewest_answers(rule: str, byzantine: int | None, cohort: int) -> int:
    """How many answers of a cohort a rule cannot do without; 1 where it takes no such number."""
    needs = ROBUST[rule].needs if rule in ROBUST else None
    return min(needs(byzantine), cohort) if needs and byzantine is not None else 1


def most_byzantine(needs: Callable[[int], int], cohort: int) -> int:
    """How many of a cohort a rule with these needs can take; below 1: not even one."""
    return (cohort - needs(0)) // 2
