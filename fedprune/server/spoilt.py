"""Statistics that each may be what they say, and of which no score comes: a round without pruning.

A client may send any finite numbers. What a score of the user's own makes of their sum, a logarithm
of a negative one perhaps, is not to end the run: it was tried on real data before round one.
"""

from __future__ import annotations

from fedprune.config import RunConfig
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure, plain
from fedprune.scores.catalog import SCORES, scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.score import Evidence, Statistic
from fedprune.server.standing import all_finite, standing_out
from fedprune.tensors.named import Tensors


class Spoilt(Exception):
    """Nothing comes of the sums, and why; with failures of clients whose statistics stand out."""

    def __init__(self, why: str, aggregate: Aggregate) -> None:
        super().__init__(plain(why))
        self.failures = tuple(
            Failure(p, "score", "values", plain(f"statistics of size {size:.4g}: {why}"))
            for p, size in standing_out(aggregate).items()
        )


def check_score(evidence: Evidence, aggregate: Aggregate, config: RunConfig) -> None:
    """Refuse sums of which a score of the user's own makes none.

    The built-in ones are numbers for all sums that pass `fedprune.protocol.checks`.

    Raises:
        Spoilt: it gives NaN, or raises.
    """
    score, combine = scores_of(config.plugin)[config.score], combines_of(config.plugin)
    built_in = score is SCORES.get(config.score)
    if built_in or score.step is not None or not combine[config.combine].pooled:
        return
    try:
        found = score.finalise(evidence)
        bad = [n for n, t in found.items() if t.isnan().any()]
    except Exception as error:  # the user's code
        why = f"no score comes of the sums: {type(error).__name__}: {error}"
        raise Spoilt(why, aggregate) from None
    if bad:
        raise Spoilt(f"no score comes of the sums: NaN for {bad[0]}", aggregate)


def given_by(ask: Statistic, evidence: Evidence, aggregate: Aggregate) -> Tensors:
    """What goes along with an ask, made of what was answered before.

    Raises:
        Spoilt: it is not finite, or a score's code raises on sums of clients.
        Exception: it raises before any client was asked.
    """
    if ask.given is None:
        return {}
    try:
        given = {n: t.float() for n, t in ask.given(evidence).items()}
    except Exception as error:
        if not evidence.sums:
            raise
        why = f"no question comes of the sums: {type(error).__name__}: {error}"
        raise Spoilt(why, aggregate) from None
    if evidence.sums and not all_finite(given):
        raise Spoilt("no question comes of the sums: what it says is not finite", aggregate)
    return given
