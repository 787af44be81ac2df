"""A bandit that chooses one of several arms for each client by upper confidence bounds (UCB1).

Auer et al. 2002, "Finite-time analysis of the multiarmed bandit problem", fig. 1: an arm a that
client k has not tried yet, or else that with the largest bound

    u_k(a) + explore · sqrt(2 ln n_k / n_k(a)),

u_k(a): mean reward, n_k(a): how often it had the arm, n_k: any; explore is 1 there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log, sqrt


@dataclass(frozen=True)
class Tried:
    """What is known of a client."""

    times: tuple[int, ...]  # how often it had each arm
    sums: tuple[float, ...]  # of the rewards
    loss: float | None = None  # when it last trained; None: not yet
    arm: int = 0  # that it has
    part: int = 0  # the place of the arm's density in `densities`


def with_arm(tried: Tried, partition: int, explore: float) -> Tried:
    """What is known of a client, with the arm that it has next."""
    many = len(tried.times)
    turn = [(partition + i) % many for i in range(many)]
    fresh = [a for a in turn if not tried.times[a]]
    if fresh:
        return replace(tried, arm=fresh[0])
    n = sum(tried.times)
    bounds = [
        total / times + explore * sqrt(2 * log(n) / times)
        for total, times in zip(tried.sums, tried.times, strict=True)
    ]
    return replace(tried, arm=max(turn, key=lambda a: bounds[a]))


def rewarded_arm(its: Tried, reward: float, loss: float) -> Tried:
    """What is known of a client after its arm had a reward, and it ended with a loss."""
    here = [i == its.arm for i in range(len(its.times))]
    times = tuple(n + h for n, h in zip(its.times, here, strict=True))
    sums = tuple(s + reward * h for s, h in zip(its.sums, here, strict=True))
    return replace(its, times=times, sums=sums, loss=loss)
