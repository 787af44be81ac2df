"""What privacy goes together with: one table of combinations, looked at before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedprune.options.refusal import Conflict, counted
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import COMBINES
from fedprune.scores.score import Score

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig

_OUT = "leave it out"


def privacy_conflicts(c: RunConfig) -> list[Conflict]:
    """Every conflict of the keys of privacy with each other and with the rest."""
    score = scores_of(c.plugin)[c.score]
    return [*_unread(c), *noise_conflicts(c, score), *_how_many(c)]


def noise_conflicts(c: RunConfig, score: Score) -> list[Conflict]:
    """What noise does not go together with, and what it has to cover."""
    return [*_together(c), *_with_noise(c, score), *_uncovered(c, score)]


def _unread(c: RunConfig) -> list[Conflict]:
    """Keys that nothing would read."""
    without, client = c.dp == "none", c.dp == "client"
    there = "dp is none"
    keys = ("dp_clip", "dp_noise", "dp_score_clip", "dp_score_noise")
    unread = [(key, without, there) for key in (*keys, "epsilon", "delta")]
    metrics = c.metrics == "exact"
    unread += [(key, metrics, "metrics are exact") for key in ("dp_metric_clip", "dp_metric_noise")]
    unread += [("dp_rate", c.dp != "example", f"dp is {c.dp}")]
    return [
        *[
            (key.replace("_", "-"), wrong and vars(c)[key] is not None, reason, _OUT)
            for key, wrong, reason in unread
        ],
        ("metrics", without and not metrics, there, "exact"),
        ("sampling", without and c.sampling == "poisson", there, "fixed, round-robin"),
        ("panel", without and c.panel > 0, there, "0"),
        ("panel", c.panel > 0 and not metrics, "the panel is not protected", "0, or exact metrics"),
        ("allow-uncovered", without and c.allow_uncovered, there, "false"),
        (
            "noise-source",
            without and c.secure == "none" and c.response is None and c.noise_source != "seeded",
            "there is neither noise nor a secure sum",
            "seeded",
        ),
        (
            "sampling",
            c.dp == "example" and c.sampling == "poisson",
            _EXAMPLES,
            "fixed, round-robin",
        ),
        ("dp-score-clip", client and c.dp_score_clip is not None and not _asks(c), _NO_ASK, _OUT),
    ]


_EXAMPLES = "examples are protected in every client that is asked, however it was drawn"
_NO_ASK = "the score asks nobody"


def _asks(c: RunConfig) -> bool:
    return bool(scores_of(c.plugin)[c.score].asks) and c.sparsity != 0.0


def _together(c: RunConfig) -> list[Conflict]:
    """What cannot be had together with noise."""
    dp, name = c.dp != "none", f"dp is {c.dp}"
    robust = COMBINES[c.combine].merge is not None
    return [
        (
            "weighting",
            dp and c.weighting != "equal",
            f"{name}: a weight would tell its size",
            "equal",
        ),
        ("combine", dp and robust, f"{name}: it looks at clients one by one", _SUMS),
        ("max-norm", dp and c.max_norm is not None, f"{name}: norms are bounded already", _OUT),
        (
            "strikes",
            dp and c.strikes is not None,
            f"{name}: who is left out would depend on the data, and others are drawn more often",
            _OUT,
        ),
        ("robust", dp and c.robust != "none", f"{name}: it looks at clients one by one", "none"),
        ("normalise", dp and c.normalise != "none", f"{name}: norms are bounded already", "none"),
    ]


def _with_noise(c: RunConfig, score: Score) -> list[Conflict]:
    """What noise, or the bound that it needs, would make nonsense of."""
    dp, name = c.dp != "none", f"dp is {c.dp}"
    moments = "second moments with noise are no longer those of any inputs"
    return [
        (
            "agreement",
            dp and c.agreement,
            f"{name}: votes would be released beside scores",
            "false",
        ),
        (
            "masks",
            dp and c.masks != "global",
            f"{name}: masks of their own give data away",
            "global",
        ),
        ("wire", dp and c.wire != "fp32", f"{name}: a cast may exceed the norm", "fp32"),
        ("uplink", dp and c.uplink not in (None, "fp32"), f"{name}: a cast may exceed it", "fp32"),
        (
            "threshold",
            dp and c.threshold is not None and c.dp_score_clip is None,
            f"{name}: statistics are scaled, and a threshold is of their scale",
            "a sparsity, or --dp-score-clip",
        ),
        ("score", dp and score.step is not None, moments, "a score that selects by ranking"),
        ("reconstruct", dp and c.reconstruct is not None, moments, _OUT),
        ("reduce", dp and bool(c.reduce), moments, _OUT),
        ("vocabulary", dp and c.vocabulary == "used", "rare tokens are what noise hides", "full"),
        ("teacher", dp and bool(c.teacher), "the ledger knows nothing of another run's data", _OUT),
        ("init", dp and bool(c.init), "the ledger knows nothing of another run's data", _OUT),
        (
            "response",
            dp and c.response is not None,
            f"{name}: votes get its noise",
            "leave it out, or --dp none",
        ),
        (
            "baselines",
            dp and bool(c.baselines) and c.epsilon is not None,
            "arms spend the same budget",
            "none, and a run of their own",
        ),
    ]


_SUMS = "sum, mean, mean-absolute, second-moment, rank-mean, votes"


def _uncovered(c: RunConfig, score: Score) -> list[Conflict]:
    """What would be released without any noise beside what has some."""
    dp, open_ = c.dp != "none", not c.allow_uncovered
    raw = "the mask would come from raw scores, and nothing would be protected"
    plain, way = "without noise nothing is protected", "more than 0, or --allow-uncovered"
    exact = c.metrics == "exact" and not c.panel
    asks = bool(score.asks) and c.sparsity != 0.0
    return [
        ("dp-noise", dp and open_ and c.dp_noise == 0, plain, way),
        ("dp-score-noise", dp and open_ and asks and c.dp_score_noise == 0, raw, way),
        ("dp-metric-noise", dp and open_ and c.dp_metric_noise == 0, plain, way),
        (
            "metrics",
            dp and open_ and exact,
            "clients' losses would be released as they are",
            "noised, or --panel N, or --allow-uncovered",
        ),
    ]


def _by_budget(c: RunConfig) -> list[Conflict]:
    """What stands in the way of choosing the noise by the budget."""
    by_budget = c.dp != "none" and c.dp_noise is None
    answers = "clients' answers decide how often they are asked, so that no budget says the noise"
    how = "leave it out, or --dp-noise Z"
    return [
        ("schedule", by_budget and c.schedule == "adaptive", answers, "another, or --dp-noise Z"),
        (
            "calibration",
            by_budget and c.calibration == "sequential",
            answers,
            "dense, or --dp-noise Z",
        ),
        *[
            (
                key.replace("_", "-"),
                by_budget and bool(vars(c)[key]),
                "it follows from epsilon",
                how,
            )
            for key in ("dp_score_noise", "dp_metric_noise")
        ],
    ]


def _how_many(c: RunConfig) -> list[Conflict]:
    trains = max(1, c.clients - c.panel)
    dp = c.dp != "none"
    rare = f"more than one in the {trains} clients"
    return [
        (
            "min-clients",
            c.sampling == "poisson" and c.min_clients > 1,
            "with Poisson sampling the number of those drawn voids no round",
            "1",
        ),
        ("panel", c.panel >= c.clients, "nobody is left to train", f"0 to {c.clients - 1}"),
        (
            "cohort",
            c.cohort > trains,
            counted(trains, "client trains", "clients train"),
            f"1 to {trains}",
        ),
        ("delta", dp and (c.delta or 0.0) >= 1.0 / trains, rare, f"below {1.0 / trains:.6g}"),
        (
            "dp-noise",
            dp and c.dp_noise is None and c.epsilon is None,
            "neither noise nor a budget that says how much",
            "--dp-noise Z or --epsilon E",
        ),
        *_by_budget(c),
        (
            "local-steps",
            c.dp == "example" and c.local_epochs > 0,
            "steps are drawn",
            "--local-steps",
        ),
    ]
