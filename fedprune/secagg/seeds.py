"""Seeds of a partition's secrets for one sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fedprune.secagg.primitives import derived
from fedprune.tasks.options import Data

Seeds = Callable[[int], bytes]
"""A partition's 32 secret bytes for one sum: the same in all of its stages."""


def seeds_of(config: Data, session: bytes) -> Seeds:
    """Seeds that follow from the configuration's: to study, not to hide."""

    def seed(partition: int) -> bytes:
        text = f"{config.seed}|secure|{session.hex()}|{partition}"
        return hashlib.sha256(text.encode()).digest()

    return seed


def seeds_from(secret: bytes, session: bytes) -> Seeds:
    """Seeds that follow from a device's secret for one sum: one for each of its partitions."""

    def seed(partition: int) -> bytes:
        return derived(secret, f"partition {partition}", session)

    return seed
