"""What a pruning says about itself, beside its mask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Notes:
    """What a pruning leaves in the row of its round beside its result; None: not measured.

    Attributes:
        agreement: how much two clients' own masks share on average.
        overlap: part of a client's own mask that its scores still give after the cast on the wire.
        standard_error: median over alive weights of the score's standard error / |score|.
        exchanged: weights that were dropped and as many regrown.
    """

    agreement: float | None = None
    overlap: float | None = None
    standard_error: float | None = None
    exchanged: int | None = None
