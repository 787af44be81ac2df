"""Who is asked in a round, and whether enough of them answered."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence

import torch

from fedprune.config.kinds import KINDS
from fedprune.config.options import Federation
from fedprune.config.sections import AllOptions
from fedprune.config.selectors import selectors_of
from fedprune.options.refusal import ConfigError
from fedprune.randomness import draw, draw_each, generator


def selected(config: AllOptions, there: Mapping[int, int], round_: int) -> list[int]:
    """The cohort of a round, sorted: as `drawn`, or as ``--selector`` chooses.

    `there` holds the training labels of those who can be asked, by partition.

    Raises:
        ConfigError: a selector of the user's own chooses others, or too many.
    """
    if config.selector == "uniform":
        return drawn(config, list(there), round_)
    choose = selectors_of(config.plugin)[config.selector].choose
    gen = generator(config.seed, "cohort", round_)
    found = sorted(choose(dict(there), config.cohort, round_, gen))
    wrong = len(set(found)) < len(found) or not set(found) <= set(there)
    if wrong or len(found) > config.cohort:
        raise ConfigError(
            f"selector={config.selector!r}: chose {found} in round {round_}; allowed: at most "
            f"{config.cohort} of {len(there)} partitions, each once"
        )
    return found


def drawn(config: AllOptions, there: Sequence[int], round_: int) -> list[int]:
    """The cohort of a round, sorted: a function of the seed, the round and who is there.

    With `noise_source` secret it is a function of nothing, where not to know it protects.

    `fixed`: so many without replacement. `poisson`: each by itself, so many on average of those
    that could ever be there; perhaps nobody, and then the round has noise alone. `round-robin`:
    everyone in turn, in an order that follows from the seed and that anybody may know; of n clients
    any n turns in a row are one of each. Who is absent misses its turn: nobody takes it, and the
    cohort is smaller.
    """
    if config.sampling == "round-robin":
        return sorted(set(_in_turn(config, round_)).intersection(there))
    gen = _chance(config, round_)
    if config.sampling == "poisson":
        return draw_each(list(there), config.cohort / (config.clients - config.panel), gen)
    return draw(list(there), asked_in(config), gen)


def asked_in(config: AllOptions) -> int:
    """How many clients are asked in a round, of whom as many count as are in a cohort."""
    return min(config.clients, math.ceil(round(config.cohort * config.over_select, 9)))


def first_counting(config: AllOptions, kinds: Collection[str]) -> int | None:
    """How many answers to questions of these kinds count, put side by side: the first; None: all.

    Only those of a cohort can be too many. Bonawitz et al. 2019, arXiv 1902.01046, section 2: more
    are asked than are needed, and whoever answers after enough others counts for nothing.
    """
    cohort = [kind for kind in kinds if KINDS[kind].asks == "cohort"]
    others = config.score_cohort != "cohort" and "score" in cohort
    return None if config.over_select == 1.0 or others or not cohort else config.cohort


def scored_of(config: AllOptions, training: Sequence[int], round_: int) -> list[int]:
    """Who is asked for scores in a round where that is not its cohort, sorted.

    `training` are the partitions that a cohort can be drawn from.
    """
    n = config.score_cohort
    if not isinstance(n, int):
        return list(training)
    return draw(list(training), min(n, len(training)), generator(config.seed, "scored", round_))


def newcomers_of(config: AllOptions) -> frozenset[int]:
    """The partitions that never train, drawn by the seed."""
    if not config.newcomers:
        return frozenset()
    gen = generator(config.seed, "newcomers")
    return frozenset(draw(list(range(config.clients)), config.newcomers, gen))


def measures_in(config: Federation, round_: int) -> bool:
    """Whether the model is measured on validation after this round."""
    return round_ % config.measure_every == 0 or round_ == config.rounds


def measurers(config: AllOptions, there: Sequence[int], round_: int) -> list[int]:
    """The partitions that measure on validation after a round; nobody where it is not measured."""
    if not measures_in(config, round_):
        return []
    if not config.measure_cohort:
        return list(there)
    return draw(list(there), config.measure_cohort, generator(config.seed, "measuring", round_))


def _in_turn(config: AllOptions, round_: int) -> list[int]:
    """Whose turn it is: in the same order in every cycle, so that nobody has two at once."""
    n = config.clients - config.panel
    order = torch.randperm(n, generator=generator(config.seed, "turns")).tolist()
    first = (round_ - 1) * config.cohort
    return [order[(first + i) % n] for i in range(min(config.cohort, n))]


def _chance(config: AllOptions, round_: int) -> torch.Generator:
    """What the draw comes from: with a secret source nobody can tell afterwards who was drawn.

    Where that is not counted as protection it follows from the seed, so that a budget can be
    planned by who takes part.
    """
    if config.noise_source == "secret" and secretly(config):
        return torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    return generator(config.seed, "cohort", round_)


def secretly(config: AllOptions) -> bool:
    """Whether epsilon may count on nobody knowing who is drawn."""
    return config.dp == "client" and config.secure == "none" and config.sampling != "round-robin"


def asked_of(kind: str, config: AllOptions) -> int:
    """How many clients such a question to a cohort is put to; of a Poisson sample, on average."""
    if kind != "score" or config.score_cohort == "cohort":
        return config.cohort
    n = config.score_cohort
    return n if isinstance(n, int) else config.clients - config.panel


def audience(kind: str, config: AllOptions) -> str:
    """Whom such a question goes to: the round's cohort, everyone or some of them, or the panel."""
    if kind == "score" and config.score_cohort != "cohort":
        return "everyone"
    if KINDS[kind].asks == "cohort":
        return "cohort"
    return "panel" if config.panel else "everyone"
