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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedprune.structure.layout import Layout
from fedprune.tensors import Tensors, scattered

_CHUNK = 2**15
"""Values that are widened to float64 at a time, for all clients."""

Blocks = Callable[[], Iterator[Tensor]]
"""The changes as (clients, some values) float64, from the first value to the last."""

_Read = Callable[[Tensor], Tensor]
"""From positions to the changes there, (clients, positions) float64."""


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
    shares = _nearest(lambda: map(plain, at.split(_CHUNK)), byzantine)
    return lambda some: shares @ plain(some)


def _of_group(rule: Rule, read: _Read, at: Tensor, byzantine: int) -> Tensor:
    def blocks() -> Iterator[Tensor]:
        return map(read, at.split(_CHUNK))

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


def _nearest(blocks: Blocks, byzantine: int) -> Tensor:
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
        "the mean by labels: a sum is all that is needed, and one client can send it anywhere",
        "McMahan et al. 2017, arXiv 1602.05629",
    ),
    "median": Rule(
        "coordinate-wise median",
        "Yin et al. 2018, arXiv 1803.01498, definition 1",
        middle=_median,
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
