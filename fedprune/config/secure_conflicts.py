"""What does not go with secure sums."""

from __future__ import annotations

from fnmatch import fnmatchcase

from fedprune.config.sections import AllOptions
from fedprune.config.terms import noised
from fedprune.options.conditions import only
from fedprune.options.refusal import Conflict
from fedprune.privacy.discretise import RANGES
from fedprune.privacy.options import Privacy
from fedprune.scores.combine import COMBINES

_SUMS = tuple(name for name, combine in COMBINES.items() if combine.merge is None)
_PATTERNS = f"{', '.join(RANGES)}, and a slash and a tensor"


def secure_conflicts(c: AllOptions) -> list[Conflict]:
    """Every possible conflict of a configuration's secure sums, with whether it is one."""
    return [*_seen_singly(c), *_of_the_sum(c), *_of_ranges(c)]


def _seen_singly(c: AllOptions) -> list[Conflict]:
    """What looks at one client's answer, or at how it was cast."""
    on, shows = c.secure != "none", "a secure sum shows no client's"
    whole = "a secure sum is of integers, with a step of its own"
    return [
        *only(c, on, f"{shows} own scores", combine=_SUMS),
        *only(c, on, f"{shows} norm", max_norm=None),
        *only(c, on, f"{shows} own change", robust="none"),
        ("uplink", on and c.uplink not in (None, "fp32"), whole, "fp32"),
        *only(c, on, whole, score_wire="fp32"),
        *only(c, on, "a secure sum has no sums of squares", measure_cohort=0),
    ]


def _of_the_sum(c: AllOptions) -> list[Conflict]:
    on, fewest, others = c.secure != "none", c.secure_minimum or 3, c.cohort - 1
    few = on and c.cohort < fewest
    crowd = f"2 to {c.cohort}, or a larger --cohort" if c.cohort > 1 else "a larger --cohort"
    panel = f"their answers are a secure sum as well, of secure-minimum={fewest} or more"
    many = (c.secure_neighbours or 0) > others
    half, majority = (c.secure_dropout or 0.0) >= 0.5, "a majority must be left to restore secrets"
    seen = "who is in a secure sum is seen, and too few make none"
    forgetful = "a worker of a simulation keeps no secret from one stage to the next"
    secret = on and c.noise_source == "secret" and c.engine == "ray" and not noised(c)
    alone, new = on and 0 < c.panel < fewest, on and 0 < c.newcomers < fewest
    scored = on and isinstance(c.score_cohort, int) and c.score_cohort < fewest
    return [
        ("score-cohort", scored, panel, f"cohort, all, or {fewest} or more"),
        *only(c, on, "no such width", secure_bits=(32, 64)),
        ("secure-minimum", few, f"the cohort is of {c.cohort}", crowd),
        ("panel", alone, panel, f"0, or {fewest} or more"),
        ("newcomers", new, panel, f"0, or {fewest} or more"),
        ("secure-neighbours", many, f"each has {others} others in its cohort", f"2 to {others}"),
        ("secure-dropout", half, majority, "0 to below 0.5"),
        *only(c, on, seen, sampling=("fixed", "round-robin")),
        ("noise-source", secret, forgetful, "seeded, or --engine inline"),
    ]


def _of_ranges(c: Privacy) -> list[Conflict]:
    strange = [p for p in c.ranges if not _fits(p)]
    wrong = [p for p, largest in c.ranges.items() if not largest > 0]
    unknown, low = ", ".join(strange) or "a pattern", ", ".join(wrong) or "a magnitude"
    return [
        ("ranges", bool(strange), f"{unknown} is no quantity's name", _PATTERNS),
        ("ranges", bool(wrong), f"{low} is not above 0", "largest magnitudes"),
    ]


def _fits(pattern: str) -> bool:
    quantity, slash, _ = pattern.partition("/")
    return bool(slash) and any(fnmatchcase(name, quantity) for name in RANGES)
