"""Canary clients: how much privacy a mechanism is *caught* losing, beside what it claims.

Every canary tosses a coin and sends one thing or another; who sees the noised sums guesses all the
coins. Differential privacy bounds how many guesses can be right, hence guesses bound epsilon from
below, in one run. The bound is far below the truth even for a right mechanism, so it finds mistakes
(no noise, no clipping, sampling that is not what was booked) and confirms nothing.

From Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846) comes the bound, from Andrew et al. 2023
(arXiv 2302.03098) that the canaries are clients with directions of their own, found again by inner
products. Departure: a canary's direction is random on coordinates that are its own, so that the
canaries do not disturb each other, where Andrew et al. have dense ones that nearly do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedprune.attacks.one_run import cap, epsilon_bound
from fedprune.privacy.clipping import clipped, sensitivity
from fedprune.privacy.noise import Floats, Source, gaussian
from fedprune.randomness import draw, generator

_LOUD = 10.0
"""Norm of what a canary sends, in clip norms: clipping is what keeps it from being heard."""


@dataclass(frozen=True)
class Noised:
    """One noised sum, as it was booked."""

    clip: float  # L2 norm of one client's vector
    z: float  # standard deviation of the noise on the sum, in sensitivities
    signed: bool = True  # whether values may be below zero


@dataclass(frozen=True)
class Draw:
    """Sums that are asked of the same clients: one cohort, drawn once."""

    sums: tuple[Noised, ...]  # what is asked
    rate: float = 1.0  # the part of the population that is in the cohort
    times: int = 1  # how many such cohorts there were


@dataclass(frozen=True)
class Audited:
    """What is audited."""

    draws: tuple[Draw, ...]  # all that was released
    # "fixed": a cohort of rate times the population; "poisson": each by itself
    sampling: str = "fixed"
    clipping: bool = True  # False breaks it: vectors are added as they come
    noise: float = 1.0  # factor of the noise that is really added; 0.0 breaks it


@dataclass(frozen=True)
class Audit:
    """What the guesses say."""

    canaries: int  # coins that were tossed
    guesses: int  # coins that were guessed, the surest; how many was fixed beforehand
    right: int  # guesses that were right
    delta: float  # of the claim
    bound: float  # epsilon is at least this, with a confidence of 95 %
    cap: float  # the bound if every guess had been right: the largest that this audit could certify


def audit(
    mechanism: Audited, delta: float, source: Source, *, canaries: int, size: int, seed: int
) -> Audit:
    """Release the sums with canaries in them, guess their coins, and say what that refutes.

    The other clients are left out: whoever knows what they sent subtracts it. Half of the coins are
    guessed, the surest, as abstaining on the others makes the bound larger (Steinke et al., sect.
    6). Where one client is replaced by another, a canary's two sides are two vectors as far apart
    as the norm allows; where one is added or removed, it is there or not.

    `canaries`: how many; at least 2. `size`: coordinates of a vector, at least two a canary.

    Raises:
        ValueError: too few coordinates, or a clip norm that `clipping` refuses.
    """
    if canaries < 2 or size < 2 * canaries:
        raise ValueError(
            f"{canaries} canaries in {size} coordinates; allowed: from 2, each with two of its own"
        )
    coins = torch.rand(canaries, generator=generator(seed, "canary coins")) < 0.5
    heard = np.zeros(canaries)
    for which, drawn in enumerate(mechanism.draws):
        sides = [_sides(n, mechanism, canaries, size // canaries, seed) for n in drawn.sums]
        for time in range(drawn.times):
            gen = generator(seed, "canary cohort", which, time)
            there = _there(drawn.rate, mechanism.sampling, canaries, gen)
            shares = np.zeros((2, canaries))
            for noised, side in zip(drawn.sums, sides, strict=True):
                total = _released(noised, mechanism, side, coins & there, ~coins & there, source)
                shares += _likelihoods(noised, mechanism, side, total)
            heard += _odds(shares, drawn.rate)
    guesses = canaries // 2
    surest = np.argsort(-np.abs(heard), kind="stable")[:guesses]
    right = int(((heard > 0) == coins.numpy())[surest].sum())
    bound = epsilon_bound(canaries, guesses, right, delta)
    return Audit(canaries, guesses, right, delta, bound, cap(canaries, guesses, delta))


@dataclass(frozen=True)
class _Sides:
    """The two sides of each canary, (canaries, own): vectors on coordinates of its own."""

    heads: Tensor  # norm 1
    tails: Tensor  # norm 1, or zeros: a client that is not there
    sent_heads: Tensor  # what reaches the sum
    sent_tails: Tensor


def _sides(noised: Noised, mechanism: Audited, canaries: int, own: int, seed: int) -> _Sides:
    gen = generator(seed, "canary directions")
    values = torch.randn(canaries, own, generator=gen, dtype=torch.float64)
    if noised.signed:
        heads, tails = values, -values
    else:  # two halves that do not meet are as far apart as vectors without negative values can be
        left = (torch.arange(own) < own // 2).expand(canaries, own)
        heads, tails = values.abs() * left, values.abs() * ~left
    heads, tails = (x / x.norm(dim=1, keepdim=True) for x in (heads, tails))
    if mechanism.sampling == "poisson":
        tails = torch.zeros_like(tails)
    sent = (_sent(side, noised.clip, mechanism.clipping) for side in (heads, tails))
    return _Sides(heads, tails, *sent)


def _sent(vectors: Tensor, clip: float, clipping: bool) -> Tensor:
    """What reaches the sum of vectors that are `_LOUD`, clipped by the function that runs use."""
    loud = _LOUD * clip * vectors
    if not clipping:
        return loud
    return torch.stack([clipped(vector, clip).double() for vector in loud])


def _there(rate: float, sampling: str, canaries: int, gen: torch.Generator) -> Tensor:
    """Which canaries are in a cohort, drawn as a run draws it."""
    if rate >= 1.0:
        return torch.ones(canaries, dtype=torch.bool)
    if sampling == "poisson":
        return torch.rand(canaries, generator=gen) < rate
    chosen = draw(list(range(canaries)), max(1, round(rate * canaries)), gen)
    return torch.zeros(canaries, dtype=torch.bool).index_fill_(0, torch.tensor(chosen), True)


def _released(
    noised: Noised, mechanism: Audited, sides: _Sides, heads: Tensor, tails: Tensor, source: Source
) -> Tensor:
    """The noised sum, where each canary sends, (canaries, own)."""
    total = torch.zeros_like(sides.heads)
    total[heads] += sides.sent_heads[heads]
    total[tails] += sides.sent_tails[tails]
    sd = mechanism.noise * noised.z * _reach(noised, mechanism)
    return total + gaussian(total.numel(), sd, source).view_as(total) if sd else total


def _reach(noised: Noised, mechanism: Audited) -> float:
    return sensitivity(noised.clip, signed=noised.signed, sampling=mechanism.sampling)


def _likelihoods(noised: Noised, mechanism: Audited, sides: _Sides, total: Tensor) -> Floats:
    """Log-likelihoods of both sides of each canary against its absence, (2, canaries).

    Under the mechanism as it was booked, whatever it does; of what is booked without noise, under
    next to none.
    """
    sd = max(noised.z * _reach(noised, mechanism), 1e-3 * noised.clip)
    both = torch.stack([sides.heads, sides.tails]) * noised.clip
    found: Floats = ((both * total).sum(2) - both.square().sum(2) / 2.0).numpy() / sd**2
    return found


def _odds(likelihoods: Floats, rate: float) -> Floats:
    """Log-odds of heads: each side is a mixture of being in the cohort and not."""
    if rate < 1.0:
        likelihoods = np.logaddexp(math.log1p(-rate), math.log(rate) + likelihoods)
    odds: Floats = likelihoods[0] - likelihoods[1]
    return odds
