"""How well an attack tells members from others: its curve, and what it finds at few false alarms.

An attack gives every example a statistic, higher = more likely a member. An average says little
about privacy: an attack that is sure of a few members harms those (Carlini et al. 2022, arXiv
2112.03570), hence the true positives at a false positive rate of 1 % and of 0.1 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedprune.privacy.noise import Floats

Sides = tuple[Floats, Floats]  # An attack's statistics of members, and of others
CONFIDENCE = 0.95  # Of every interval and bound here


@dataclass(frozen=True)
class AtRate:
    """What an attack finds while it accuses at most a given part of the others."""

    rate: float  # the largest false positive rate that was allowed
    false: int  # false positives there were, of `others`
    others: int  # examples that are no members
    true: int  # members found, of `members`
    members: int  # examples that are members
    low: float  # lower end of the interval of the true positive rate
    high: float  # its upper end

    @property
    def share(self) -> float:
        """The true positive rate."""
        return self.true / self.members


def roc(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1).

    A threshold accuses every example whose statistic is at least it; equal ones go together.

    Raises:
        ValueError: a side is empty, or a statistic is NaN.
    """
    false, true = _counts(members, others)
    return false / len(others), true / len(members)


def _counts(members: Floats, others: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Others and members accused at every distinct threshold, the strictest (nobody) first."""
    if not len(members) or not len(others):
        raise ValueError(f"{len(members)} members and {len(others)} others; allowed: some of each")
    both = np.concatenate([members, others]).astype(np.float64)
    if np.isnan(both).any():
        raise ValueError(f"statistics of an attack: NaN in {int(np.isnan(both).sum())} places")
    order = np.argsort(-both, kind="stable")
    member = order < len(members)
    ends = np.flatnonzero(np.append(np.diff(both[order]) != 0.0, True))
    true, all_ = np.cumsum(member)[ends], ends + 1
    return np.insert(all_ - true, 0, 0), np.insert(true, 0, 0)


def auc(members: Floats, others: Floats) -> float:
    """The area under the curve: how often a member's statistic is above another's; ties half."""
    false, true = roc(members, others)
    return float(np.trapezoid(true, false))


def found_at(members: Floats, others: Floats, rate: float) -> AtRate:
    """The most members that a threshold finds while at most `rate` of the others are accused.

    The threshold is chosen on these very examples, so the share is the attack's best case. With
    fewer than 1/rate others no false positive is allowed at all. The interval takes members for
    independent of each other; where several models are attacked, the same example occurs in many.
    """
    false, true = _counts(members, others)
    allowed = false <= math.floor(rate * len(others) + 1e-9)
    best = int(np.flatnonzero(allowed)[-1])
    low, high = interval(int(true[best]), len(members))
    return AtRate(rate, int(false[best]), len(others), int(true[best]), len(members), low, high)


def distributions() -> Any:
    """`scipy.stats`, which comes with dp-accounting.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import scipy.stats
    except ImportError:
        raise ValueError(
            "bounds of an attack need the package scipy; allowed: pip install 'fedprune[privacy]'"
        ) from None
    return scipy.stats


def interval(successes: int, trials: int) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson 1934, doi 10.2307/2331986).

    Raises:
        ValueError: not 0 <= successes <= trials, no trial, or scipy is missing.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} of {trials}; allowed: 0 to all of at least one")
    beta = distributions().beta

    tail, failures = (1.0 - CONFIDENCE) / 2.0, trials - successes
    low = float(beta.ppf(tail, successes, failures + 1)) if successes else 0.0
    high = float(beta.ppf(1.0 - tail, successes + 1, failures)) if failures else 1.0
    return low, high
