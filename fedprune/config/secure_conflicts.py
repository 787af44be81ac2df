"""What secure sums take, what fills itself in beside them, and what does not go with them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fedprune.config.terms import noised
from fedprune.options.refusal import Conflict
from fedprune.privacy.ranges import RANGES
from fedprune.scores.combine import COMBINES

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig

_OUT = "leave it out"
_KEYS = ("secure_neighbours", "secure_dropout", "secure_bits", "secure_minimum")
_SUMS = ", ".join(name for name, combine in COMBINES.items() if combine.merge is None)


def secure_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """How wide, how many, and how many may drop out."""
    if values.get("secure", "none") == "none":
        return {}
    return {"secure_dropout": 0.3, "secure_bits": 64, "secure_minimum": 3}


def secure_conflicts(c: RunConfig) -> list[Conflict]:
    """Every possible conflict of a configuration's secure sums, with whether it is one."""
    return [*_unread(c), *_seen_singly(c), *_of_the_sum(c)]


def _unread(c: RunConfig) -> list[Conflict]:
    without = c.secure == "none"
    keys = [(key.replace("_", "-"), vars(c)[key] is not None) for key in _KEYS]
    return [
        (key, without and given, "secure is none", _OUT)
        for key, given in [*keys, ("ranges", bool(c.ranges))]
    ]


def _seen_singly(c: RunConfig) -> list[Conflict]:
    """What looks at one client's answer, or at how it was cast."""
    on = c.secure != "none"
    robust = COMBINES[c.combine].merge is not None
    whole = "a secure sum is of integers, with a step of its own"
    return [
        ("combine", on and robust, "a secure sum shows no client's own scores", _SUMS),
        ("max-norm", on and c.max_norm is not None, "a secure sum shows no client's norm", _OUT),
        ("robust", on and c.robust != "none", "a secure sum shows no client's own change", "none"),
        ("uplink", on and c.uplink not in (None, "fp32"), whole, "fp32"),
        ("score-wire", on and c.score_wire != "fp32", whole, "fp32"),
    ]


def _of_the_sum(c: RunConfig) -> list[Conflict]:
    on, fewest, others = c.secure != "none", c.secure_minimum or 3, c.cohort - 1
    strange = [p for p in c.ranges if not _fits(p)]
    wrong = [p for p, largest in c.ranges.items() if not largest > 0]
    forgetful = "a worker of a simulation keeps no secret from one stage to the next"
    return [
        ("secure-bits", on and c.secure_bits not in (None, 32, 64), "no such width", "32, 64"),
        (
            "secure-minimum",
            on and c.cohort < fewest,
            f"the cohort is of {c.cohort}",
            f"2 to {c.cohort}, or a larger --cohort",
        ),
        (
            "panel",
            on and 0 < c.panel < fewest,
            f"its answers are a secure sum as well, of secure-minimum={fewest} or more",
            f"0, or {fewest} or more",
        ),
        (
            "secure-neighbours",
            on and (c.secure_neighbours or 0) > others,
            f"each has {others} others in its cohort",
            f"2 to {others}",
        ),
        (
            "secure-dropout",
            on and (c.secure_dropout or 0.0) >= 0.5,
            "a majority must be left to restore secrets",
            "0 to below 0.5",
        ),
        ("ranges", bool(strange), f"no quantity is called like {strange}", _PATTERNS),
        ("ranges", bool(wrong), f"not above 0: {wrong}", "largest magnitudes"),
        (
            "sampling",
            on and c.sampling == "poisson",
            "who is in a secure sum is seen, and too few make none",
            "fixed, round-robin",
        ),
        (
            "noise-source",
            on and c.noise_source == "secret" and c.engine == "ray" and not noised(c),
            forgetful,
            "seeded, or --engine inline",
        ),
    ]


_PATTERNS = f"{', '.join(RANGES)}, and a slash and a tensor"


def _fits(pattern: str) -> bool:
    quantity, slash, _ = pattern.partition("/")
    return bool(slash) and any(fnmatchcase(name, quantity) for name in RANGES)
