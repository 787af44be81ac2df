"""Random numbers that depend on what they are for and on nothing else.

Every draw comes from a generator derived from (seed, purpose, round, partition), so neither the
number of workers nor the order in which clients answer can change a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from numpy.random import Generator, default_rng


def derive(seed: int, purpose: str, *where: int) -> int:
    """A 63-bit seed for one purpose at one place, e.g. ``derive(1, "batches", round_, p)``."""
    text = "|".join([str(seed), purpose, *map(str, where)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *where: int) -> torch.Generator:
    """A fresh CPU generator with the derived seed."""
    return torch.Generator().manual_seed(derive(seed, purpose, *where))


def numpy_generator(seed: int, purpose: str, *where: int) -> Generator:
    """A fresh generator of numpy's with the derived seed, for what torch cannot draw."""
    return default_rng(derive(seed, purpose, *where))


@contextmanager
def seeded(seed: int, purpose: str, *where: int) -> Iterator[None]:
    """Within the block torch's global generator (initialisation, dropout) has the derived seed.

    The caller's global random state is as it was afterwards.
    """
    number = derive(seed, purpose, *where)
    if torch.accelerator.is_available():
        with torch.random.fork_rng():
            torch.manual_seed(number)
            yield
        return
    # Without one, what torch does for all kinds of them takes as long as a small model's step.
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(number)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def draw_each(population: list[int], rate: float, gen: torch.Generator) -> list[int]:
    """Each member by itself with probability `rate` (Poisson sampling), sorted; perhaps nobody."""
    flips = torch.rand(len(population), generator=gen, dtype=torch.float64).tolist()
    return [p for p, flip in zip(sorted(population), flips, strict=True) if flip < rate]


def draw(population: list[int], size: int, gen: torch.Generator) -> list[int]:
    """`size` members without replacement, sorted; all of them if there are no more."""
    order = torch.randperm(len(population), generator=gen).tolist()
    return sorted(population[i] for i in order[:size])
