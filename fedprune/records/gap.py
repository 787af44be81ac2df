"""How much of the way from clients alone to pooled data a federation has gone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fedprune.config import RunConfig
from fedprune.config.options import CENTRAL, LOCAL
from fedprune.learning.options import trains
from fedprune.records.alone import losses_alone
from fedprune.records.arms import PRUNED
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.selection.options import followed_method
from fedprune.server.state import State, Totals

Gap = dict[str, Any]


def gap_closure(
    local: Sequence[float], federated: Sequence[float], centralised: Sequence[float]
) -> Gap:
    """(local - federated) / (local - centralised), of means, and what it is made of.

    Args:
        local: mean test losses of models of single clients, or one a seed.
        federated: one, or one a seed.
        centralised: one, or one a seed.

    Returns:
        ``value``: of the means; None where it is withheld. ``losses``: by side the mean and the
        standard deviation (None of one). ``denominator`` and its ``standard_error``, the root of
        the sum of both means' squared standard errors, a single figure's taken to be 0 beside one
        that is known; None where none is. ``withheld``: why, or "".
    """
    sides = {"local": local, "federated": federated, "centralised": centralised}
    losses = {name: _spread(values) for name, values in sides.items()}
    if any(found["mean"] is None for found in losses.values()):
        return {"value": None, "losses": losses, "withheld": "a loss is not known"}
    first, ours, last = (found["mean"] for found in losses.values())
    errors = [_error(local), _error(centralised)]
    known = [e for e in errors if e is not None]
    error = math.hypot(*known) if known else None
    width, why = first - last, ""
    if error is None:
        why = "one figure on either side has no standard error"
    elif abs(width) <= 2 * error:
        why = "local and centralised differ by no more than twice the standard error"
    value = None if why else (first - ours) / width
    about = {"denominator": width, "standard_error": error, "withheld": why}
    return {"value": value, "losses": losses, **about}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    known = [v for v in values if math.isfinite(v)]
    return {
        "mean": statistics.fmean(known) if known else None,
        "deviation": statistics.stdev(known) if len(known) > 1 else None,
        "count": len(known),
    }


def _error(values: Sequence[float]) -> float | None:
    known = [v for v in values if math.isfinite(v)]
    return statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None


def gap_of(
    config: RunConfig, tests: Mapping[str, Totals], alone: State | None, failures: int
) -> Gap:
    """What a summary says of the gap: nothing without both arms that it lies between.

    Local losses are those of the clients' models, each on everyone's test parts, as the other two.
    Of a run in which an answer failed to come nothing is said to be so by construction.
    """
    if not {LOCAL, CENTRAL} <= set(config.baselines) or alone is None:
        return {}
    ours, last = ([mean] if (mean := _mean(tests.get(a, {}))) is not None else [] for a in _SIDES)
    found = gap_closure(losses_alone(alone), ours, last)
    return {"gap_closure": {**found, "by_construction": not failures and by_construction(config)}}


_SIDES = (PRUNED, CENTRAL)


def _mean(totals: Totals) -> float | None:
    return totals["loss"] / totals["count"] if totals.get("count") else None


def by_construction(config: RunConfig) -> bool:
    """Whether the federated model is the centralised one: exact sums of everyone, and no training.

    Then the gap is closed whatever the data, and 1 says nothing about the method. Not of scores
    that ask nobody, by which clients alone have that model, too, nor of devices that may be away.
    """
    c, score = config, scores_of(config.plugin)[config.score]
    asked = c.cohort if c.score_cohort == "cohort" else c.score_cohort
    everyone = not c.profiles and (asked == "all" or asked >= c.clients - c.newcomers - c.panel)
    exact = combines_of(c.plugin)[c.combine].pooled and score.additive and bool(score.asks)
    plain = c.masks == "global" and c.normalise == "none" and c.score_wire == "fp32"
    whole = c.score_examples is None and c.schedule != "adaptive"
    named = c.method == followed_method(c)
    return not trains(c) and everyone and exact and plain and whole and named
