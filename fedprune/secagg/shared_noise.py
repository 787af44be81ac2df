"""Noise that clients share out: each adds its part before it masks, so no server is trusted.

A clipped vector is scaled to integers and gets a share of Skellam noise, whose shares add up
exactly (Agarwal, Kairouz and Liu 2021, arXiv 2110.04995). The shares are sized so that those who
may drop out take nothing of what was promised with them; if more do, the sum is not opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedprune.config import RunConfig
from fedprune.privacy.discretise import Noise, noise_for
from fedprune.privacy.mechanisms import SKELLAM
from fedprune.privacy.noise import Source, skellam
from fedprune.privacy.options import Privacy
from fedprune.protocol.form import Form
from fedprune.protocol.limits import most_votes
from fedprune.protocol.messages import Question
from fedprune.protocol.releases import releases_of
from fedprune.secagg.fixed_point import Ring
from fedprune.secagg.vectors import Pieces
from fedprune.structure.layout import Layout


def noises_of(
    question: Question, form: Form, config: RunConfig, layout: Layout
) -> dict[str, Noise]:
    """The noise of every field of an answer that clients add noise to, as it is booked."""
    if config.dp == "none" or config.secure == "none":
        return {}
    booked = releases_of(question, form, config, most_votes(question, config, form, layout))
    return {f: noise_for(r) for r in booked if r.mechanism == SKELLAM.name for f in r.fields}


def fewest_left(clients: int, config: Privacy) -> int:
    """How many of them are left when as many drop out as may."""
    return clients - math.floor((config.secure_dropout or 0.0) * clients + 1e-9)


def with_share(
    vector: Ring, pieces: Pieces, noises: Mapping[str, Noise], clients: int, source: Source
) -> None:
    """Add one client's share of the noise to its vector, in place.

    So many shares at least make the whole; `source` is this client's own.
    """
    at = 0
    for piece in pieces:
        noise = noises.get(piece.wire)
        if noise is not None:
            share = skellam(piece.size, noise.mu / clients, source)
            vector[at : at + piece.size] += share.astype(vector.dtype)
        at += piece.size
