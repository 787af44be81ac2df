"""95 % intervals of what is measured, by a bootstrap over clients that adds sums as they come.

Each client counts a Poisson(1) number of times in each resample, so that nobody's own figures are
kept (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams"). It brings all its
examples along: that clients differ because examples were drawn is in the spread between clients
(ultimate clusters: Kalton 1979, doi 10.2307/2345307). Of few clients such intervals are too narrow:
their variance lacks a factor n / (n - 1), and quantiles of a skewed distribution lack more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from fedprune.randomness import generator

RESAMPLES = 200

_LOW, _HIGH = "low_of_", "high_of_"
_ENDS = (0.025, 0.975)


def resampled(totals: Mapping[str, float], seed: int, partition: int) -> Tensor:
    """One client's part of the sums of every resample: (RESAMPLES · names,), names in their order.

    A partition counts as often in one question as in another: resamples of two models are paired.
    """
    times = torch.poisson(
        torch.ones(RESAMPLES, dtype=torch.float64), generator(seed, "resamples", partition)
    )
    values = torch.tensor([totals[name] for name in sorted(totals)], dtype=torch.float64)
    return torch.outer(times, values).flatten()


def ends_of_intervals(
    sums: Tensor,
    names: Iterable[str],
    measured: Callable[[Mapping[str, float]], Mapping[str, float] | None],
) -> dict[str, float]:
    """The ends of an interval for each measure, named as `intervals` reads them.

    Args:
        sums: `resampled`, added up over clients.
        names: of the totals.
        measured: what the totals of one resample come to; None where nobody is in it.
    """
    order = sorted(names)
    rows = sums.reshape(RESAMPLES, len(order)).tolist()
    found = [measured(dict(zip(order, row, strict=True))) for row in rows]
    each = [f for f in found if f]
    ends: dict[str, float] = {}
    for name in dict.fromkeys(name for f in each for name in f if name != "count"):
        low, high = np.quantile([f[name] for f in each if name in f], _ENDS)
        ends |= {_LOW + name: float(low), _HIGH + name: float(high)}
    return ends


def intervals(totals: Mapping[str, float]) -> dict[str, list[float]]:
    """The two ends of each measure's interval that came with totals; empty if none did."""
    names = [name.removeprefix(_LOW) for name in totals if name.startswith(_LOW)]
    return {name: [totals[_LOW + name], totals[_HIGH + name]] for name in names}
