"""Who is asked in a round, and whether enough of them answered."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from fedprune.config import RunConfig
from fedprune.messages import Folded
from fedprune.randomness import draw, draw_each, generator


def drawn(config: RunConfig, there: Sequence[int], round_: int) -> list[int]:
    """The cohort of a round, sorted: a function of the seed, the round and who is there.

    With `noise_source` secret it is a function of nothing.

    `fixed`: so many without replacement. `poisson`: each by itself, so many on average of those
    that could ever be there; perhaps nobody, and then the round has noise alone.
    """
    gen = _chance(config, round_)
    if config.sampling == "poisson":
        return draw_each(list(there), config.cohort / (config.clients - config.panel), gen)
    return draw(list(there), config.cohort, gen)


def _chance(config: RunConfig, round_: int) -> torch.Generator:
    """What the draw comes from: with a secret source nobody can tell afterwards who was drawn."""
    if config.noise_source == "secret":
        return torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    return generator(config.seed, "cohort", round_)


def asked_of(kind: str, config: RunConfig) -> int:
    """How many clients such a question to a cohort is put to; of a Poisson sample, on average."""
    whole = kind == "score" and config.score_cohort == "all"
    return config.clients - config.panel if whole else config.cohort


def too_few(folded: Folded, config: RunConfig) -> bool:
    """Whether a round is void for want of answers.

    With Poisson sampling the number of those drawn is part of what is hidden, and voids nothing.
    """
    return config.sampling == "fixed" and len(folded.answered) < config.min_clients
