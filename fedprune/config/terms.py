"""The terms of the ledger that a configuration sets."""

from __future__ import annotations

import bisect
import math
from functools import lru_cache

from fedprune.config.sections import AllOptions
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.options import Privacy


def accounting_terms_of(config: AllOptions) -> AccountingTerms:
    """The terms that a configuration sets."""
    summed = config.secure != "none"
    neighbours, threshold = shape_of(config, config.cohort) if summed else (0, 0)
    return AccountingTerms(
        dp=config.dp,
        sampling=config.sampling,
        cohort=config.cohort,
        population=config.clients - config.panel,
        delta=1e-5 if config.delta is None else config.delta,
        budget=config.epsilon,
        noise_source=config.noise_source,
        secure=config.secure,
        panel=config.panel,
        keys_follow=keys_follow(config),
        neighbours=neighbours,
        threshold=threshold,
    )


def noised(config: AllOptions) -> bool:
    """Whether anything of a run gets noise."""
    return config.dp != "none" or config.response is not None


def simulated(config: AllOptions) -> bool:
    """Whether a run's noise follows from its seed."""
    return noised(config) and config.noise_source == "seeded"


def keys_follow(config: AllOptions) -> bool:
    """Whether keys of secure sums follow from the seed: a worker of Ray's keeps no secret.

    On devices they never do; of ``flwr run`` it is not known here whether it has any.
    """
    seeded = config.noise_source == "seeded" and config.engine != "flower"
    return config.secure != "none" and (seeded or config.engine == "ray")


_FAILING = 1e-4
"""How likely a sum may be to need a second try when exactly the tolerated part drops out."""

_SPARSE = 36
"""Fewest neighbours of a default graph that is not complete; a multiple of `_STEP`."""

_STEP = 6
"""Even, so that every graph has so many neighbours, and with two whole thirds."""


def colluders_of(config: Privacy, n: int) -> tuple[int, int, int]:
    """Of a sum of n members: `Terms.colluders`, neighbours, threshold."""
    k, threshold = shape_of(config, n)
    return 2 * threshold - k, k, threshold


def others_of(config: AllOptions) -> dict[str, int]:
    """How many clients are in the sums that are not a cohort's, by who they are."""
    trains = config.clients - config.panel
    out = {"all": trains} if config.score_cohort == "all" or not config.panel else {}
    out |= {"the panel": config.panel} if config.panel else {}
    n = config.score_cohort
    out |= {"those who are scored": n} if isinstance(n, int) else {}
    return {who: n for who, n in out.items() if n != config.cohort}


def shape_of(config: Privacy, n: int) -> tuple[int, int]:
    """How many neighbours each of n members has, and how many of them restore a secret."""
    dropout = 0.3 if config.secure_dropout is None else config.secure_dropout
    gone = math.floor(dropout * n + 1e-9)  # 0.29 * 100 is a little less than 29
    k = config.secure_neighbours or _enough_neighbours(n, gone)
    k = min(k + (k * n) % 2, n - 1)  # or the next that a regular graph of n has
    return k, max(_survived(n, k, gone), k // 2 + 1)


@lru_cache(maxsize=64)
def _enough_neighbours(n: int, gone: int) -> int:
    """The fewest neighbours, a multiple of `_STEP`, of whom two thirds are left; or n - 1."""
    steps = range(_SPARSE, n - 1, _STEP)
    at = bisect.bisect_left(steps, True, key=lambda k: _survived(n, k, gone) >= 2 * k // 3)
    return steps[at] if at < len(steps) else n - 1


@lru_cache(maxsize=64)
def _survived(n: int, k: int, gone: int) -> int:
    """How many of a survivor's k neighbours are left to every one of n, but for `_FAILING`.

    Someone who is gone itself has more left: one fewer of the others is.
    """
    allowed, fewer = math.floor(_FAILING * math.comb(n - 1, k) / n), 0
    for left in range(max(0, k - gone), k):
        fewer += math.comb(gone, k - left) * math.comb(n - 1 - gone, left)
        if fewer > allowed:
            return left
    return k
