"""The terms of the ledger that a configuration sets."""

from __future__ import annotations

from fedprune.config.neighbours import shape_of
from fedprune.config.sections import AllOptions
from fedprune.privacy.accounting_terms import AccountingTerms


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
        allow_uncovered=config.allow_uncovered,
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
