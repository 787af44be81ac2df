"""Options of privacy."""

from __future__ import annotations

from functools import partial
from typing import Literal

from fedprune.options.conditions import Not
from fedprune.options.option import option
from fedprune.options.section import Section

_privacy = partial(option, "privacy")

_NOISE = {"dp": ("client", "example")}
_SUMS = {"secure": "secagg"}
_NOISED_METRICS = {"metrics": "noised"}
_RESPONSE = {"response": Not(None)}


class Privacy(Section):
    """What hides a client's data."""

    epsilon: float | None = _privacy(
        "privacy budget: the run stops before a release that would exceed it", when=_NOISE, gt=0
    )
    delta: float | None = _privacy(
        "delta of (epsilon, delta) differential privacy", 1e-5, when=_NOISE, gt=0, lt=1
    )
    sampling: Literal["fixed", "poisson", "round-robin"] = _privacy(
        "fixed: --cohort clients, drawn at random; poisson: each client independently, --cohort "
        "on average; round-robin: --cohort clients in turn, in a public order",
        "fixed",
    )
    dp_clip: float | None = _privacy(
        "largest L2 norm of a client's change, or of an example's gradient", 1.0, when=_NOISE, gt=0
    )
    dp_noise: float | None = _privacy(
        "noise multiplier of changes: standard deviation over sensitivity (default: what "
        "--epsilon allows over the run)",
        when=_NOISE,
        ge=0,
    )
    dp_score_clip: float | None = _privacy(
        "largest L2 norm of a summand of scores (default: each is scaled to norm 1)",
        when=_NOISE,
        gt=0,
    )
    dp_score_noise: float | None = _privacy(
        "noise multiplier of scores (default: as --dp-noise)", when=_NOISE, ge=0
    )
    dp_rate: float | None = _privacy(
        "part of its examples that a client samples for a step",
        0.1,
        when={"dp": "example"},
        gt=0,
        le=1,
    )
    dp_metric_clip: float | None = _privacy(
        "largest L2 norm of a client's losses and metrics", 10.0, when=_NOISED_METRICS, gt=0
    )
    dp_metric_noise: float | None = _privacy(
        "noise multiplier of metrics (default: as --dp-noise)", when=_NOISED_METRICS, ge=0
    )
    allow_uncovered: bool = _privacy(
        "run although something is released that no guarantee covers", False, when=_NOISE
    )
    noise_source: Literal["seeded", "secret"] = _privacy(
        "secret: noise from the operating system (default wherever there is noise); seeded: noise "
        "and keys follow from --seed, for simulation only: anyone with the seed can remove it",
        "seeded",
        when=(_NOISE, _RESPONSE, _SUMS),
        derived=lambda c: "seeded" if c.dp == "none" and c.response is None else "secret",
    )
    response: float | None = _privacy(
        "epsilon of a client's vote under randomised response", when={"combine": "votes"}, gt=0
    )
    secure: Literal["none", "secagg"] = _privacy(
        "secagg: the server sees only sums of masked answers (SecAgg+)", "none"
    )
    secure_neighbours: int | None = _privacy(
        "number of clients that each shares keys with (default: by the cohort)", when=_SUMS, ge=2
    )
    secure_dropout: float | None = _privacy(
        "part of a cohort that may drop out of a secure sum", 0.3, when=_SUMS, ge=0, lt=1
    )
    secure_bits: int | None = _privacy(
        "bits of the integers in a secure sum: 32 or 64", 64, when=_SUMS
    )
    secure_minimum: int | None = _privacy("fewest clients in a secure sum", 3, when=_SUMS, ge=2)
    ranges: dict[str, float] = _privacy(
        "largest magnitude in a secure sum, by shell pattern over quantity/tensor", {}, when=_SUMS
    )
    defence: float = _privacy(
        "each client does not send this part of its change, the largest values (PriPrune)",
        0.0,
        ge=0,
        lt=1,
    )
