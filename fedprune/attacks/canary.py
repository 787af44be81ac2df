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

from fedprune.attacks.roc import CONFIDENCE, Floats, distributions
from fedprune.privacy.clipping import clipped, sensitivity
from fedprune.privacy.noise import Source, gaussian
from fedprune.randomness import draw, generator

LOUD = 10.0
"""Norm of what a canary sends, in clip norms: clipping is what keeps it from being heard."""

_SURE = 60.0
"""Nothing audited ever certifies this epsilon: 1e18 canaries would be needed."""


@dataclass(frozen=True)
class Noised:
    """One kind of noised sum, as it was booked.

    Attributes:
        clip: L2 norm of one client's vector.
        z: standard deviation of the noise on the sum, in sensitivities.
        signed: whether values may be below zero.
        times: how many such sums were released.
    """

    clip: float
    z: float
    signed: bool = True
    times: int = 1


@dataclass(frozen=True)
class Mechanism:
    """What is audited.

    Attributes:
        sums: what is released.
        sampling: "fixed": a cohort of rate times the population; "poisson": each by itself.
        rate: the part of the population that is in a cohort.
        clipping: False breaks it: vectors are added as they come.
        noise: factor of the noise that is really added; 0.0 breaks it.
    """

    sums: tuple[Noised, ...]
    sampling: str = "fixed"
    rate: float = 1.0
    clipping: bool = True
    noise: float = 1.0


@dataclass(frozen=True)
class Audit:
    """What the guesses say.

    Attributes:
        canaries: coins that were tossed.
        guesses: coins that were guessed, the surest; how many was fixed beforehand.
        right: guesses that were right.
        delta: of the claim.
        bound: epsilon is at least this, with a confidence of 95 %.
        cap: the bound if every guess had been right: the largest that this audit could certify.
    """

    canaries: int
    guesses: int
    right: int
    delta: float
    bound: float
    cap: float


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are, at most, under an (epsilon, delta)-private mechanism.

    Steinke et al. 2023, arXiv 2305.08846, theorem 5.2 and appendix D: with X binomial of `guesses`
    trials and success e^eps/(1 + e^eps), P[X >= right] + 2·canaries·delta·max_i P[right > X >=
    right - i]/i over i = 1 .. right.

    Raises:
        ValueError: not 0 <= right <= guesses <= canaries, or a negative epsilon or delta.
    """
    if not 0 <= right <= guesses <= canaries or epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError(
            f"{right} right of {guesses} guesses on {canaries} canaries, epsilon={epsilon}, "
            f"delta={delta}; allowed: 0 <= right <= guesses <= canaries, epsilon from 0, delta in "
            "0..1"
        )
    binom = distributions().binom
    success = 1.0 / (1.0 + math.exp(-epsilon))
    beyond = float(binom.sf(right - 1, guesses, success))
    if not right:
        return min(1.0, beyond)
    i = np.arange(1, right + 1)
    alpha = float((np.cumsum(binom.pmf(right - i, guesses, success)) / i).max())
    return min(1.0, beyond + 2.0 * canaries * delta * alpha)


def epsilon_bound(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that so many right guesses refute; 0.0 where they refute none.

    `guesses` has to be fixed before the coins are known. Raises as `p_value`.
    """
    level = 1.0 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, right, epsilon, delta) < level

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _SURE
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def cap(canaries: int, guesses: int, delta: float) -> float:
    """The bound if every guess is right: no audit of this size can say more."""
    return epsilon_bound(canaries, guesses, guesses, delta)


def audit(
    mechanism: Mechanism, delta: float, source: Source, *, canaries: int, size: int, seed: int
) -> Audit:
    """Release the sums with canaries in them, guess their coins, and say what that refutes.

    The other clients are left out: whoever knows what they sent subtracts it. Half of the coins are
    guessed, the surest, as abstaining on the others makes the bound larger (Steinke et al., sect.
    6). Where one client is replaced by another, a canary's two sides are two vectors as far apart
    as the norm allows; where one is added or removed, it is there or not.

    Args:
        mechanism: what is released.
        delta: of the claim.
        source: of the noise.
        canaries: how many; at least 2.
        size: coordinates of a vector, at least two a canary.
        seed: of coins, directions and cohorts.

    Raises:
        ValueError: too few coordinates, or a clip norm that `clipping` refuses.
    """
    if canaries < 2 or size < 2 * canaries:
        raise ValueError(
            f"{canaries} canaries in {size} coordinates; allowed: from 2, each with two of its own"
        )
    coins = torch.rand(canaries, generator=generator(seed, "canary coins")) < 0.5
    heard = np.zeros(canaries)
    for which, noised in enumerate(mechanism.sums):
        sides = _sides(noised, mechanism, canaries, size // canaries, seed)
        for time in range(noised.times):
            there = _there(mechanism, canaries, generator(seed, "canary cohort", which, time))
            total = _released(noised, mechanism, sides, coins & there, ~coins & there, source)
            heard += _evidence(noised, mechanism, sides, total)
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


def _sides(noised: Noised, mechanism: Mechanism, canaries: int, own: int, seed: int) -> _Sides:
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
    """What reaches the sum of vectors that are `LOUD`, clipped by the function that runs use."""
    loud = LOUD * clip * vectors
    if not clipping:
        return loud
    return torch.stack([clipped(vector, clip).double() for vector in loud])


def _there(mechanism: Mechanism, canaries: int, gen: torch.Generator) -> Tensor:
    """Which canaries are in a cohort, drawn as a run draws it."""
    if mechanism.rate >= 1.0:
        return torch.ones(canaries, dtype=torch.bool)
    if mechanism.sampling == "poisson":
        return torch.rand(canaries, generator=gen) < mechanism.rate
    chosen = draw(list(range(canaries)), max(1, round(mechanism.rate * canaries)), gen)
    return torch.zeros(canaries, dtype=torch.bool).index_fill_(0, torch.tensor(chosen), True)


def _released(
    noised: Noised,
    mechanism: Mechanism,
    sides: _Sides,
    heads: Tensor,
    tails: Tensor,
    source: Source,
) -> Tensor:
    """What the sum is where each canary sends, (canaries, own)."""
    total = torch.zeros_like(sides.heads)
    total[heads] += sides.sent_heads[heads]
    total[tails] += sides.sent_tails[tails]
    reach = sensitivity(noised.clip, signed=noised.signed, sampling=mechanism.sampling)
    sd = mechanism.noise * noised.z * reach
    return total + gaussian(total.numel(), sd, source).view_as(total) if sd else total


def _evidence(noised: Noised, mechanism: Mechanism, sides: _Sides, total: Tensor) -> Floats:
    """Log-likelihood ratio of each canary's two sides, under the mechanism as it was booked.

    A canary may not have been in the cohort: each side is a mixture of being there and not.
    """
    reach = sensitivity(noised.clip, signed=noised.signed, sampling=mechanism.sampling)
    sd = max(noised.z * reach, 1e-3 * noised.clip)  # of what is booked without noise: nearly none

    def likelihood(vectors: Tensor) -> Floats:
        inner = noised.clip * (total * vectors).sum(1)
        norm = (noised.clip * vectors.norm(dim=1)).square()
        there: Floats = ((inner - norm / 2.0) / sd**2).numpy()
        if mechanism.rate >= 1.0:
            return there
        return np.logaddexp(math.log1p(-mechanism.rate), math.log(mechanism.rate) + there)

    out: Floats = likelihood(sides.heads) - likelihood(sides.tails)
    return out
