"""How much noise a budget asks for: the releases that a run is going to make, before it makes them.

Only their number and kind matter, and a configuration says both, unless clients' answers decide
how often something is asked; such a configuration has to say its noise itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fedprune.config.cohort import audience, drawn, measures_in, secretly
from fedprune.config.kinds import KINDS
from fedprune.config.rates import prunes_in
from fedprune.config.sections import AllOptions
from fedprune.config.terms import accounting_terms_of
from fedprune.learning.options import trains
from fedprune.privacy.calibration import calibrated
from fedprune.privacy.mechanisms import GAUSSIAN, SAMPLED_GAUSSIAN, SKELLAM
from fedprune.privacy.release import Occasion, Release
from fedprune.scores.catalog import scores_of

_MARGIN = 1e-3
"""Part of the budget that is left, so that rounding cannot exceed it at the last release."""

_Planned = tuple[Occasion, tuple[Release, ...]]


def noise_of_budget(config: AllOptions) -> float:
    """The smallest noise multiplier, the same for all releases, that spends at most the budget.

    Rounded up to four digits.
    """
    terms = accounting_terms_of(config)
    assert terms.budget is not None  # nobody asks without one
    terms = replace(terms, budget=terms.budget * (1.0 - _MARGIN))
    z = calibrated(terms, tuple(planned(config)))
    if not z:
        return z
    digits = 3 - math.floor(math.log10(z))
    return float(math.ceil(z * 10**digits) / 10**digits)


def planned(config: AllOptions) -> Iterator[_Planned]:
    """Every noisy release of a run to its end, with noise multiplier 1."""
    everyone = tuple(range(config.clients - config.panel))
    measured = config.metrics == "noised"
    comparing = {"none": 0, "global": 1}.get(config.blend, 2)  # the most that blending puts a round
    for round_ in range(1, config.rounds + 1):
        cohort = _cohort(config, everyone, round_)
        due = config.sparsity != 0.0 and prunes_in(config, round_)
        kinds = [*(_scoring(config, round_) if due else ()), *_tuning(config, due)]
        order = 0
        for kind in kinds:
            asked = everyone if audience(kind, config) == "everyone" else cohort
            yield _occasion(config, kind, round_, order, asked), (_release(config, kind),)
            order += 1
        tests = (due and round_ == config.warmup + 1) + (round_ == config.rounds)
        for _ in range(measured * (measures_in(config, round_) + tests + comparing)):
            occasion = _occasion(config, "evaluate", round_, order, everyone)
            yield occasion, (_noisy(config, "metrics"),)
            order += 1


def _cohort(config: AllOptions, everyone: tuple[int, ...], round_: int) -> tuple[int, ...]:
    """Who will be asked if everyone is there.

    Of a draw that nobody can tell before: the same clients in every round, the worst that can come
    of it, so that only its being secret is counted on.
    """
    if config.noise_source == "secret" and secretly(config):
        return everyone[: config.cohort]
    return tuple(drawn(config, everyone, round_))


def _scoring(config: AllOptions, round_: int) -> list[str]:
    """The score's questions in a round that prunes."""
    if config.score_during == "tune" or config.dp_score_noise == 0:
        return []
    asks = len(scores_of(config.plugin)[config.score].asks)
    exchanges = config.schedule == "regrow" and round_ > config.warmup + 1
    return ["score"] * (asks * (1 if exchanges else config.score_steps) + exchanges)


def _tuning(config: AllOptions, due: bool) -> list[str]:
    if not trains(config):
        return []
    beside = due and config.score_during == "tune" and config.dp_score_noise != 0
    return ["tune"] + ["score"] * beside


def _occasion(
    config: AllOptions, kind: str, round_: int, order: int, asked: tuple[int, ...]
) -> Occasion:
    population = config.clients - config.panel
    return Occasion("pruned", round_, kind, order, audience(kind, config), asked, population)


def _release(config: AllOptions, kind: str) -> Release:
    name = KINDS[kind].quantity
    if config.dp == "example" and KINDS[kind].changes:
        release = Release(name, (), "up", "example", SAMPLED_GAUSSIAN.name, z=1.0, covered=True)
        return replace(release, steps=config.local_steps, rate=config.dp_rate or 1.0)
    return _noisy(config, name)


def _noisy(config: AllOptions, name: str) -> Release:
    """A release with noise of multiplier 1; under a secure sum its second term is negligible."""
    release = Release(name, (), unit=config.dp, mechanism=GAUSSIAN.name, z=1.0, covered=True)
    if config.secure == "none" or (config.dp == "example" and name != "metrics"):
        return release
    return replace(release, mechanism=SKELLAM.name, spread=(0.5, 0.0))
