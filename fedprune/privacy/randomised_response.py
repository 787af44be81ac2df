"""Randomised response on votes: each unit of a client's own mask may be sent flipped, by chance.

Warner 1965, doi 10.1080/01621459.1965.10480775, on every bit of a mask. An epsilon for the whole
vote is shared out over the bits, one a unit, so that it holds for any two clients' data, and
against the server too. It is for few units: with many, each bit is close to a coin, and the mask
that the counts give close to a random one. How close is computed before anybody is asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedprune.privacy.noise import Source, uniforms

COIN = 0.45
"""From this probability of a wrong bit on, there is a warning."""

MOST_EPSILON = 36.0
"""Largest epsilon of a bit: what uniforms on a grid of 2⁵² points can still flip."""


@dataclass(frozen=True)
class VoteUnits:
    """The units that a client votes on: how many have a kept coordinate.

    `places` is the unit of every kept coordinate, 0 to units - 1, flat; -1 for none.
    """

    places: Tensor
    units: int


def epsilon_of_a_bit(epsilon: float, units: int) -> float:
    """The even share of each unit's bit in an epsilon, at most `MOST_EPSILON`."""
    return min(epsilon / max(1, units), MOST_EPSILON)


def flip_probability(epsilon: float, units: int) -> float:
    """How likely a bit is flipped, if so many of them share a pure epsilon: 1/(1+e^(E/m))."""
    return 1.0 / (1.0 + math.exp(epsilon_of_a_bit(epsilon, units)))


def responded(votes: Tensor, units_voted: VoteUnits, p: float, source: Source) -> Tensor:
    """A client's votes after randomised response: of every unit all or none, flipped by chance.

    Coordinates in no unit always stay, for every client, and are told so. A unit counts as kept, if
    any of its coordinates is. Votes are flat flags on the kept coordinates; `p` is the probability
    of a flip.
    """
    inside = units_voted.places >= 0
    bits = torch.zeros(units_voted.units, dtype=torch.bool)
    bits[units_voted.places[inside & votes]] = True
    flips = torch.from_numpy(uniforms(units_voted.units, source) < p)
    out = torch.ones_like(votes)
    out[inside] = (bits ^ flips)[units_voted.places[inside]]
    return out


def debiased(counts: Tensor, clients: int, p: float) -> Tensor:
    """Counts of votes without what flips add on average: unbiased, float64, perhaps below 0.

    With n clients of whom c keep a unit, c·(1-p) + (n-c)·p tell so in the mean.
    """
    return counts.to(torch.float64, copy=True).sub_(clients * p).div_(1.0 - 2.0 * p)


def expected_overlap(p: float, clients: int, units: int, kept_units: int) -> float:
    """Part of the units that stay after response among those that would without, at most.

    As if all clients had the same mask of so many kept units: where they differ, less is expected.
    The counts of kept and of removed units are then binomial, and the most voted ones are taken,
    ties by lot; how many units have which count is taken at its expectation.
    """
    if not 0 < kept_units < units:
        return 1.0
    stay, go = _binomial(clients, 1.0 - p), _binomial(clients, p)
    room, overlap = float(kept_units), 0.0
    for high, low in zip(stay[::-1] * kept_units, go[::-1] * (units - kept_units), strict=True):
        share = 1.0 if high + low <= room else room / (high + low)
        overlap, room = overlap + share * high, max(0.0, room - share * (high + low))
    return float(overlap / kept_units)


def _binomial(n: int, p: float) -> npt.NDArray[np.float64]:
    """Probabilities of 0 to n, of a p that is neither 0 nor 1 to double precision."""
    p = min(max(p, 1e-15), 1.0 - 1e-15)
    log = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(n + 1)
    ]
    found: npt.NDArray[np.float64] = np.exp(np.array(log))
    return found
