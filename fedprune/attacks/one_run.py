"""What guesses of coins say about epsilon: a lower bound from one run.

Every coin decides about one member of the data; who sees the output guesses the coins, or some of
them. Differential privacy bounds how many guesses can be right.
"""

from __future__ import annotations

import math

import numpy as np

from fedprune.attacks.roc import CONFIDENCE, distributions

_SURE = 60.0  # Nothing audited ever certifies this epsilon: 1e26 canaries would be needed


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
