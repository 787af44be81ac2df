"""Choices about pruning that contradict each other, or that nothing would read.

One list per question: how much, what is removed together, when, and whose evidence counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedprune.config.reduction_conflicts import reduction_conflicts
from fedprune.config.secure_conflicts import secure_conflicts
from fedprune.learning.averaging import MASKS
from fedprune.options.refusal import Conflict
from fedprune.scores.combine import COMBINES
from fedprune.scores.score import Score, weight_shapes
from fedprune.selection.combinations import conflict, scope_fits, scopes_of
from fedprune.selection.regrowth import EXCHANGING
from fedprune.selection.units import pattern_sparsity, shape_misfit
from fedprune.tasks.task import Task

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig

_OUT = "leave it out"
_WITHIN = ("weight", "n:m", "block", "row", "column")
"""Units that lie in one tensor."""
_STEADY = "one-shot, linear, cubic, exponential"
"""Schedules that say how much goes, once and for all."""


def conflicts(c: RunConfig, score: Score, task: Task) -> list[Conflict]:
    """Every possible conflict of a configuration's pruning, with whether it is one."""
    return [
        *_how_much(c, task),
        *_what(c),
        *_how_found(c, task),
        *_of_the_score(c, score),
        *_by_itself(c, score),
        *_when(c, score),
        *_while_tuning(c, score),
        *_in_sequence(c, score),
        *_behind_its_own(c, score),
        *_who_is_scored(c, score),
        *_shrunk(c),
        *reduction_conflicts(c),
        *_whose(c, score),
        *_own_masks(c, score),
        *_adaptive(c, score),
        *secure_conflicts(c),
    ]


def _how_much(c: RunConfig, task: Task) -> list[Conflict]:
    ways = {
        "sparsity": c.sparsity,
        "threshold": c.threshold,
        "target-bytes": c.target_bytes,
        "target-flops": c.target_flops,
    }
    given = [name for name, value in ways.items() if value is not None]
    exclusive = f"{' and '.join(given)} exclude each other" if given else "nothing says how much"
    fixed = c.threshold is not None
    lonely = "a threshold looks at every weight by itself"
    sought = c.target_bytes is not None or c.target_flops is not None
    return [
        (
            given[-1] if given else "sparsity",
            len(given) != 1,
            exclusive,
            f"one of {', '.join(ways)}",
        ),
        ("schedule", fixed and c.schedule != "one-shot", "a threshold prunes once", "one-shot"),
        ("scope", fixed and c.scope != "global", lonely, "global"),
        ("unit", fixed and c.unit != "weight", lonely, "weight"),
        ("min-density", fixed and c.min_density > 0, lonely, "0"),
        ("max-density", fixed and c.max_density < 1, lonely, "1"),
        (
            "score-steps",
            (fixed or sought or c.scope == "patterns") and c.score_steps > 1,
            "steps need a sparsity",
            "1",
        ),
        (
            "baselines",
            fixed and "random" in c.baselines,
            "random scores mean nothing to a threshold",
            "dense",
        ),
        ("unit", sought and c.unit == "n:m", "the pattern says how much goes", "another unit"),
        ("combine", sought and c.combine == "votes", "clients vote at a sparsity", "another rule"),
        (
            "target-flops",
            c.target_flops is not None and task.dummy is None,
            f"task {c.task} has no example to count FLOPs on",
            "sparsity",
        ),
    ]


def _what(c: RunConfig) -> list[Conflict]:
    shape = shape_misfit(c.unit, c.unit_shape)
    told = conflict(c.unit, c.scope, min_density=c.min_density, max_density=c.max_density)
    limit = ("min-density", "0") if c.min_density > 0 else ("max-density", "1")
    allowed = scopes_of(c.unit)
    key, fit = limit if c.scope in allowed else ("scope", ", ".join(allowed))
    _, _, wrong = shape.partition(": ")
    reason, _, fitting = wrong.partition("; allowed: ")
    fits = c.unit == "n:m" and c.unit_shape is not None and not shape
    share = pattern_sparsity(*(c.unit_shape or (0, 1))) if fits else None
    left = 1.0 - (c.sparsity or 0.0)
    return [
        ("unit-shape", bool(shape), reason, fitting),
        (key, bool(told), told, fit),
        (
            "sparsity",
            share is not None and c.sparsity not in (share, 0.0),
            "the pattern says how much goes",
            f"{share}, or leave it out",
        ),
        (
            "pool",
            c.unit in {"weight", "n:m"} and c.pool is not None,
            f"unit {c.unit} pools nothing",
            _OUT,
        ),
        ("layers", bool(c.layers) and c.scope != "patterns", f"scope is {c.scope}", _OUT),
        (
            "layers",
            c.scope == "patterns" and not c.layers,
            "scope patterns needs some",
            "--layers PATTERN DENSITY",
        ),
        (
            "layers",
            not all(0 < density <= 1 for density in c.layers.values()),
            "not densities",
            "above 0, up to 1",
        ),
        ("min-density", c.min_density > left, "more than the sparsity leaves", f"0 to {left:g}"),
        (
            "max-density",
            c.sparsity is not None and c.max_density < left,
            "less than the sparsity leaves",
            f"{left:g} to 1",
        ),
    ]


def _how_found(c: RunConfig, task: Task) -> list[Conflict]:
    followed, counts = c.structure == "depgraph", c.vocabulary == "used"
    tokens = bool(task.tokens) and task.tokenizer is not None
    taught = "a teacher of another run gives tokens that are gone some probability"
    return [
        ("vocabulary", counts and not tokens, f"task {c.task} reads no tokens", "full"),
        ("vocabulary", counts and bool(c.teacher), taught, "full, or no --teacher"),
        ("structure", followed and c.unit != "channel", f"unit is {c.unit}", "auto"),
        (
            "structure",
            followed and task.dummy is None,
            f"task {c.task} has no example to follow",
            "auto",
        ),
    ]


def _of_the_score(c: RunConfig, score: Score) -> list[Conflict]:
    others = bool(score.units) and c.unit not in score.units
    return [("unit", others, f"score {c.score} is of others", ", ".join(score.units))]


def _by_itself(c: RunConfig, score: Score) -> list[Conflict]:
    """A score that prunes by a step of its own leaves no choice to the selection."""
    if score.step is None:
        return []
    why = f"score {c.score} selects by itself, tensor by tensor"
    return [
        ("scope", c.scope != "layer" and c.unit == "weight", why, "layer"),
        ("sparsity", c.sparsity is None, f"score {c.score} needs a sparsity", "a number"),
        ("min-density", c.min_density > 0, why, "0"),
        ("max-density", c.max_density < 1, why, "1"),
        ("combine", c.combine != "sum", why, "sum"),
        ("normalise", c.normalise != "none", why, "none"),
        ("masks", c.masks != "global", why, "global"),
        ("score-wire", c.score_wire != "fp32", f"score {c.score} inverts its sums", "fp32"),
        ("rewind", c.rewind is not None, f"score {c.score} sets the weights that stay", _OUT),
        ("schedule", c.schedule == "regrow", why, _STEADY),
    ]


def _when(c: RunConfig, score: Score) -> list[Conflict]:
    regrows = c.schedule == "regrow"
    start = f"score {c.score} is taken before any training"
    constant = "regrow exchanges single weights at constant sparsity"
    return [
        ("unit", regrows and c.unit != "weight", constant, "weight"),
        ("scope", regrows and c.scope not in EXCHANGING, constant, ", ".join(EXCHANGING)),
        ("min-density", regrows and c.min_density > 0, constant, "0"),
        ("max-density", regrows and c.max_density < 1, constant, "1"),
        ("warmup", score.at_start and c.warmup > 0, start, "0"),
        ("schedule", score.at_start and c.schedule != "one-shot", start, "one-shot"),
        (
            "end",
            regrows and c.end == c.warmup + 1,
            "no round is left to exchange in",
            f"{c.warmup + 2} to {c.rounds}",
        ),
        (
            "score-steps",
            c.score_steps > 1 and not score.rescored,
            f"score {c.score} says the same of what is left",
            "1",
        ),
        ("regrow", c.regrow is not None and not regrows, f"schedule is {c.schedule}", _OUT),
        ("rewind", regrows and c.rewind is not None, constant, _OUT),
        ("score-steps", regrows and c.score_steps > 1, constant, "1"),
        ("rewind", (c.rewind or 0) > c.warmup, "pruning begins before", f"0 to {c.warmup}"),
        ("rewind", c.rewind is not None and c.sparsity == 0.0, "nothing is pruned", _OUT),
        (
            "probes",
            c.probes is not None and score.error is None,
            f"score {c.score} takes none",
            _OUT,
        ),
    ]


def _while_tuning(c: RunConfig, score: Score) -> list[Conflict]:
    if c.score_during != "tune":
        return [("score-during", score.tuning, f"score {c.score} is collected by tuning", "tune")]
    able = len(score.asks) == 1 and score.asks[0].watch is not None
    one = "what is collected while tuning is summed, once a round"
    return [
        ("score-during", not able, f"score {c.score} needs a pass of its own", "pass"),
        ("combine", c.combine != "sum", one, "sum"),
        ("normalise", c.normalise != "none", one, "none"),
        ("score-steps", c.score_steps > 1, one, "1"),
        ("score-wire", c.score_wire != "fp32", "its cost is measured in a pass", "fp32"),
        ("compile", c.compile, "a compiled model is not watched", "false"),
        ("schedule", c.schedule == "regrow", one, _STEADY),
    ]


def _in_sequence(c: RunConfig, score: Score) -> list[Conflict]:
    if c.calibration == "dense":
        return []
    why = "blocks are pruned one after the other"
    return [
        ("calibration", not score.asks, f"score {c.score} asks nobody", "dense"),
        ("calibration", c.score_during == "tune", "there is no pass to repeat", "dense"),
        ("scope", c.scope not in {"layer", "row"} and c.unit != "n:m", why, "layer, row"),
        (
            "vote-scope",
            c.vote_scope not in {None, "layer", "row"} and c.unit != "n:m",
            why,
            "layer, row",
        ),
        ("unit", c.unit not in _WITHIN, why, ", ".join(_WITHIN)),
        ("sparsity", c.sparsity is None, why, "a number"),
        ("score-steps", c.score_steps > 1, why, "1"),
        ("schedule", c.schedule == "regrow", why, _STEADY),
    ]


def _behind_its_own(c: RunConfig, score: Score) -> list[Conflict]:
    """Calibration behind what a client prunes itself: only its mask may depend on that."""
    if c.calibration != "local":
        return []
    shared = c.combine != "votes" and c.masks == "global"
    return [
        (
            "calibration",
            shared,
            "clients have no masks of their own",
            "dense, sequential, or --combine votes, or --masks union, intersection",
        ),
        ("calibration", len(score.asks) > 1, f"score {c.score} needs two questions", "dense"),
        ("score-wire", c.score_wire != "fp32", "no statistics travel", "fp32"),
    ]


def _who_is_scored(c: RunConfig, score: Score) -> list[Conflict]:
    """Whom a score is asked of, on how many examples, and how much each client counts."""
    reasons = {
        f"score {c.score} asks nobody": not score.asks,
        "nothing is pruned": c.sparsity == 0.0,
        "statistics are collected while tuning": c.score_during == "tune",
    }
    why = next((reason for reason, holds in reasons.items() if holds), "")
    own = "" if c.masks == "global" else "clients prune by themselves, as they tune"
    rule = COMBINES[c.combine]
    weighted = rule.valued and not rule.pooled and rule.merge is None
    return [
        ("score-cohort", c.score_cohort == "all" and bool(why or own), why or own, "cohort"),
        ("score-examples", c.score_examples is not None and bool(why), why, _OUT),
        (
            "weighting",
            c.weighting == "equal-scores" and not weighted,
            f"combine {c.combine} weights no client's score",
            "labels, equal",
        ),
    ]


def _shrunk(c: RunConfig) -> list[Conflict]:
    idle = c.sparsity == 0.0 and not c.init
    same = bool(c.init) and bool(c.baselines) and c.sparsity == 0.0
    back = "what is cut out cannot grow back"
    return [
        ("shrink", c.shrink == "every" and c.schedule == "regrow", back, "never, end"),
        ("shrink", c.shrink != "never" and idle, "nothing is pruned", "never"),
        (
            "baselines",
            same,
            "nothing further is pruned, so that they are the run itself",
            "none, or random with a further sparsity",
        ),
        ("baselines", bool(c.init) and "dense" in c.baselines, "it begins pruned", "random"),
        ("rewind", bool(c.init) and c.rewind == 0, "it begins where another run ended", "1 on"),
    ]


def _whose(c: RunConfig, score: Score) -> list[Conflict]:
    nobody = f"score {c.score} asks nobody"
    silent, votes = not score.asks, c.combine == "votes"
    pooled = COMBINES[c.combine].pooled
    raw = bool(score.asks) and score.asks[-1].shapes is not weight_shapes
    scaleless = c.combine in {"votes", "rank-mean"}
    apart = scope_fits(c.vote_scope or c.scope, c.scope) if votes else ""
    return [
        ("combine", silent and c.combine != "sum", nobody, "sum"),
        ("combine", votes and c.sparsity is None, "clients vote at a sparsity", "another rule"),
        ("normalise", silent and c.normalise != "none", nobody, "none"),
        (
            "normalise",
            scaleless and c.normalise != "none",
            f"{c.combine} does not depend on the scale",
            "none",
        ),
        (
            "normalise",
            pooled and c.normalise == "rank",
            "ranks are of clients' own scores",
            "none, l1, or --combine mean",
        ),
        (
            "normalise",
            pooled and raw and c.normalise == "l1",
            f"what score {c.score} sums are not scores yet",
            "none, or --combine mean",
        ),
        (
            "trim",
            c.trim is not None and c.combine != "trimmed-mean",
            f"combine is {c.combine}",
            _OUT,
        ),
        ("vote-scope", c.vote_scope is not None and not votes, f"combine is {c.combine}", _OUT),
        ("vote-scope", bool(apart), apart, c.scope),
        (
            "score-wire",
            c.score_wire != "fp32" and (c.sparsity is None or not c.agreement),
            "the overlap it costs is measured on clients' masks",
            "fp32, or a sparsity and --agreement",
        ),
        ("score-wire", silent and c.score_wire != "fp32", nobody, "fp32"),
    ]


def _own_masks(c: RunConfig, score: Score) -> list[Conflict]:
    names = ", ".join(name for name in MASKS if name != "global")
    if c.masks == "global":
        return [
            (
                "average",
                c.average is not None,
                "all clients keep the same weights",
                f"leave it out, or --masks {names}",
            )
        ]
    why = "clients prune by themselves, before they tune"
    return [
        ("masks", not score.asks, f"score {c.score} gives every client the same mask", "global"),
        ("masks", not c.sparsity, "clients prune to a sparsity", "global"),
        ("combine", c.combine != "sum", why, "sum"),
        ("normalise", c.normalise != "none", why, "none"),
        ("score-during", c.score_during == "tune", why, "pass"),
        ("calibration", c.calibration == "sequential", why, "dense, local"),
        ("score-steps", c.score_steps > 1, why, "1"),
        ("schedule", c.schedule == "regrow", why, _STEADY),
        ("score-wire", c.score_wire != "fp32", "no statistics travel", "fp32"),
    ]


def _adaptive(c: RunConfig, score: Score) -> list[Conflict]:
    if c.schedule != "adaptive":
        why = f"schedule is {c.schedule}"
        keys = ("tolerance", "candidates", "adaptive")
        return [(key, vars(c)[key] is not None, why, _OUT) for key in keys]
    tried, whole = "several masks are tried before one is taken", "layer by layer"
    able, units = c.adaptive == "layer", (*_WITHIN, "head", "neuron")
    return [
        ("sparsity", c.sparsity is None, "an adaptive schedule needs an upper bound", "a number"),
        ("schedule", score.step is not None, f"score {c.score} selects by itself", _STEADY),
        ("masks", c.masks != "global", tried, "global"),
        ("score-during", c.score_during == "tune", tried, "pass"),
        ("calibration", c.calibration != "dense", tried, "dense"),
        ("score-steps", c.score_steps > 1, tried, "1"),
        ("unit", able and c.unit not in units, f"{whole} needs parts of layers", ", ".join(units)),
        ("unit", able and c.unit == "n:m", "the pattern says how much goes in a layer", "block"),
        ("scope", able and c.scope != "layer", f"{whole} every one is ranked by itself", "layer"),
        ("max-density", able and c.max_density < 1, "losses decide what a layer keeps", "1"),
    ]
