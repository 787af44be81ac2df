"""What privacy goes together with: one table of combinations, looked at before anything starts."""

from __future__ import annotations

from fedprune.config.sections import AllOptions
from fedprune.options.conditions import only
from fedprune.options.refusal import OUT, Conflict, counted
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.score import Score
from fedprune.selection.units import UNITS

_DRAWN = ("fixed", "round-robin")
_SUMS = ("sum", "mean", "mean-absolute", "second-moment", "rank-mean", "votes")


def privacy_conflicts(c: AllOptions) -> list[Conflict]:
    """Every conflict of the keys of privacy with each other and with the rest."""
    score = scores_of(c.plugin)[c.score]
    found = [*_drawn(c, score), *noise_conflicts(c, score), *_how_many(c), *_by_budget(c)]
    return [*found, *example_conflicts(c, score), *response_conflicts(c)]


def noise_conflicts(c: AllOptions, score: Score) -> list[Conflict]:
    """What noise does not go together with, and what it has to cover."""
    return [*_together(c), *_with_noise(c, score), *_uncovered(c, score)]


def _asks(c: AllOptions, score: Score) -> bool:
    return bool(score.asks) and c.sparsity != 0.0


def _drawn(c: AllOptions, score: Score) -> list[Conflict]:
    """Who is drawn, who measures, and what is bounded."""
    examples = "examples are protected in every client that is asked, however it was drawn"
    open_ = c.panel > 0 and c.metrics != "exact"
    silent = c.dp == "client" and not _asks(c, score)
    return [
        *only(c, c.dp == "none", "dp is none", sampling=_DRAWN),
        ("panel", open_, "the panel is not protected", "0, or exact metrics"),
        *only(c, c.dp == "example", examples, sampling=_DRAWN),
        *only(c, silent, "the score asks no client", dp_score_clip=None),
    ]


def _together(c: AllOptions) -> list[Conflict]:
    """What cannot be had together with noise."""
    dp, name = c.dp != "none", f"dp is {c.dp}"
    singly = f"{name}: it looks at clients one by one"
    bounded, size = f"{name}: norms are bounded already", f"{name}: a weight would tell its size"
    out = f"{name}: who is left out would depend on the data, and others are drawn more often"
    merged = dp and combines_of(c.plugin)[c.combine].merge is not None
    return [
        *only(c, dp, size, weighting="equal", score_weighting="equal"),
        ("combine", merged, singly, ", ".join(_SUMS)),
        *only(c, dp, bounded, max_norm=None),
        *only(c, dp, f"{name}: what is measured is planned for everyone", measure_cohort=0),
        *only(c, dp, out, strikes=None),
        *only(c, dp, singly, robust="none"),
        *only(c, dp, bounded, normalise="none"),
    ]


def _with_noise(c: AllOptions, score: Score) -> list[Conflict]:
    """What noise, or the bound that it needs, would make nonsense of."""
    dp, name = c.dp != "none", f"dp is {c.dp}"
    moments = "second moments with noise are no longer those of any inputs"
    unknown = "the ledger knows nothing of another run's data"
    scaled = dp and c.threshold is not None and c.dp_score_clip is None
    scale = f"{name}: statistics are scaled, and a threshold is of their scale"
    cast, voted = dp and c.uplink not in (None, "fp32"), dp and c.response is not None
    arms = dp and bool(c.baselines) and c.epsilon is not None
    solves = dp and (score.step is not None or score.makes_up is not None)
    ranked = "a score that selects by ranking"
    return [
        *only(c, dp, f"{name}: votes would be released beside scores", agreement=False),
        *only(c, dp, f"{name}: masks of their own give data away", masks="global"),
        *only(c, dp, f"{name}: a cast may exceed the norm", wire="fp32"),
        ("uplink", cast, f"{name}: a cast may exceed it", "fp32"),
        ("threshold", scaled, scale, "a sparsity, or --dp-score-clip"),
        ("score", solves, moments, ranked),
        *only(c, dp, moments, reconstruct=None, reduce=(), quantise_by=None),
        *only(c, dp, "rare tokens are what noise hides", vocabulary="full"),
        *only(c, dp, unknown, teacher="", init=""),
        ("response", voted, f"{name}: votes get its noise", f"{OUT}, or --dp none"),
        ("baselines", arms, "arms spend the same budget", "none, and a run of their own"),
    ]


def _uncovered(c: AllOptions, score: Score) -> list[Conflict]:
    """What would be released without any noise beside what has some."""
    bare = c.dp != "none" and not c.allow_uncovered
    raw = "the mask would come from raw scores, and nothing would be protected"
    plain, way = "without noise nothing is protected", "more than 0, or --allow-uncovered"
    exact = c.metrics == "exact" and not c.panel
    open_ = "clients' losses would be released as they are"
    measured = "noised, or --panel N, or --allow-uncovered"
    return [
        ("dp-noise", bare and c.dp_noise == 0, plain, way),
        ("dp-score-noise", bare and _asks(c, score) and c.dp_score_noise == 0, raw, way),
        ("dp-metric-noise", bare and c.dp_metric_noise == 0, plain, way),
        ("metrics", bare and exact, open_, measured),
    ]


def _by_budget(c: AllOptions) -> list[Conflict]:
    """What stands in the way of choosing the noise by the budget."""
    by_budget, noise = c.dp != "none" and c.dp_noise is None, "--dp-noise Z"
    answers = "clients' answers decide how often they are asked, so that no budget says the noise"
    adaptive, sequential = c.schedule == "adaptive", c.calibration == "sequential"
    follows, how = "it follows from epsilon", f"{OUT}, or {noise}"
    return [
        ("schedule", by_budget and adaptive, answers, f"another, or {noise}"),
        ("calibration", by_budget and sequential, answers, f"dense, or {noise}"),
        ("dp-score-noise", by_budget and bool(c.dp_score_noise), follows, how),
        ("dp-metric-noise", by_budget and bool(c.dp_metric_noise), follows, how),
    ]


def _how_many(c: AllOptions) -> list[Conflict]:
    trains, dp = max(1, c.clients - c.panel), c.dp != "none"
    void = c.sampling == "poisson"
    drawn = "with Poisson sampling the number of those drawn voids no round"
    there = counted(trains, "client trains", "clients train")
    rare, likely = f"more than one in the {trains} clients", (c.delta or 0.0) >= 1.0 / trains
    unsaid = dp and c.dp_noise is None and c.epsilon is None
    none, say = "neither noise nor a budget that says how much", "--dp-noise Z or --epsilon E"
    passes = c.dp == "example" and c.local_epochs > 0
    return [
        *only(c, void, drawn, min_clients=1),
        ("panel", c.panel >= c.clients, "nobody is left to train", f"0 to {c.clients - 1}"),
        ("cohort", c.cohort > trains, there, f"1 to {trains}"),
        ("delta", dp and likely, rare, f"below {1.0 / trains:.6g}"),
        ("dp-noise", unsaid, none, say),
        ("local-steps", passes, "steps are drawn", "--local-steps"),
    ]


_WHOLE = tuple(name for name in UNITS if name not in {"weight", "n:m"})
"""Units that go or stay as one: a bit says which."""


def example_conflicts(c: AllOptions, score: Score) -> list[Conflict]:
    """What steps of DP-SGD, and statistics of single examples, do not go together with."""
    here, single = c.dp == "example", "gradients are taken of single examples"
    adds = here and bool(score.asks) and c.sparsity != 0.0 and not score.additive
    summed = "noise is added to sums over examples, before anything is scored"
    lessons = "what a teacher adds to the loss is not bounded by example"
    return [
        ("score", adds, "it is no sum over examples", "another"),
        *only(c, here, summed, combine="sum"),
        *only(c, here, "steps are noise on gradients", score_during="pass"),
        *only(c, here, "which examples are drawn depends on all of them", score_examples=None),
        *only(c, here, "a step is one draw of examples", accumulate=1),
        *only(c, here, single, compile=False, checkpointing=False),
        *only(c, here, "norms are taken in float32", precision="fp32"),
        *only(c, here, lessons, distil=0.0, distil_hidden=0.0, distil_attention=0.0),
    ]


def response_conflicts(c: AllOptions) -> list[Conflict]:
    """What randomised response does not go together with."""
    responds = c.response is not None
    coins = "with a bit for every weight each of them is a coin"
    signs, signed = "it loses the sign of counts, which flips take below 0", ("l2", "abs-sum")
    overlap = "the overlap it costs would tell the client's own mask"
    return [
        *only(c, responds, coins, unit=_WHOLE),
        ("pool", responds and c.pool in signed, signs, "mean, sum, max"),
        *only(c, responds, overlap, score_wire="fp32"),
    ]
