"""Choices about pruning that contradict each other.

One list per question: how much, what is removed together, when, and whose evidence counts. What is
only read beside some values of others says so where it is declared (``option(..., when=...)``).
"""

from __future__ import annotations

from fedprune.config.client_conflicts import arm_conflicts, client_conflicts
from fedprune.config.evidence_conflicts import WITHIN_TENSOR, evidence_conflicts
from fedprune.config.options import CENTRAL, LOCAL
from fedprune.config.reduction_conflicts import reduction_conflicts
from fedprune.config.sections import AllOptions
from fedprune.config.secure_conflicts import secure_conflicts
from fedprune.options.conditions import Not, only
from fedprune.options.refusal import OUT, Conflict
from fedprune.scores.score import Score
from fedprune.selection.options import AMOUNTS
from fedprune.selection.patterns import pattern_sparsity
from fedprune.selection.regrowth import EXCHANGING
from fedprune.selection.scopes import conflict, scopes_of
from fedprune.selection.units import shape_misfit
from fedprune.tasks.task import Task

_STEADY = ("one-shot", "linear", "cubic", "exponential")
"""Schedules that say how much goes, once and for all."""


def conflicts(c: AllOptions, score: Score, task: Task) -> list[Conflict]:
    """Every possible conflict of a configuration's pruning, with whether it is one."""
    return [
        *_how_much(c, task),
        *_what(c),
        *_how_found(c, task),
        *only(c, bool(score.units), f"score {c.score} is of others", unit=tuple(score.units)),
        *only(c, score.error is None, f"score {c.score} takes none", probes=None),
        *_by_itself(c, score),
        *_making_up(c, score),
        *_remembering(c, score),
        *_when(c, score),
        *evidence_conflicts(c, score),
        *client_conflicts(c),
        *_shrunk(c),
        *_ended(c),
        *reduction_conflicts(c),
        *_adaptive(c, score),
        *secure_conflicts(c),
        *arm_conflicts(c),
    ]


def _how_much(c: AllOptions, task: Task) -> list[Conflict]:
    names = [key.replace("_", "-") for key in AMOUNTS]
    given = [name for name, key in zip(names, AMOUNTS, strict=True) if vars(c)[key] is not None]
    exclusive = f"{' and '.join(given)} exclude each other" if given else "nothing says how much"
    fixed = c.threshold is not None
    scored = {*c.baselines} - {"dense", "local-only", "centralised"}
    sought, flops = c.target_bytes is not None or c.target_flops is not None, "target-flops"
    whole = fixed or sought or c.scope == "patterns"
    none = f"task {c.task} has no example to count FLOPs on"
    senseless = "a threshold is of one score"
    lonely = "a threshold looks at every weight by itself"
    return [
        ([names[0], *given][-1], len(given) != 1, exclusive, f"one of {', '.join(names)}"),
        *only(c, fixed, "a threshold prunes once", schedule="one-shot"),
        *only(c, fixed, lonely, scope="global", unit="weight", min_density=0.0, max_density=1.0),
        *only(c, whole, "steps need a sparsity", score_steps=1),
        ("baselines", fixed and bool(scored), senseless, "dense, local-only, centralised"),
        *only(c, sought, "the pattern says how much goes", unit=Not("n:m")),
        *only(c, sought, "clients vote at a sparsity", combine=Not("votes")),
        (flops, c.target_flops is not None and task.dummy is None, none, "sparsity"),
    ]


def _what(c: AllOptions) -> list[Conflict]:
    shape = shape_misfit(c.unit, c.unit_shape)
    told = conflict(c.unit, c.scope, min_density=c.min_density, max_density=c.max_density)
    limit = ("min-density", "0") if c.min_density > 0 else ("max-density", "1")
    allowed = scopes_of(c.unit)
    key, fit = limit if c.scope in allowed else ("scope", ", ".join(allowed))
    _, _, wrong = shape.partition(": ")
    reason, _, fitting = wrong.partition("; allowed: ")
    fits = c.unit == "n:m" and c.unit_shape is not None and not shape
    share = pattern_sparsity(*(c.unit_shape or (0, 1))) if fits else None
    left, bound = 1.0 - (c.sparsity or 0.0), c.sparsity is not None
    other = share is not None and c.sparsity not in (share, 0.0)
    lacking = c.scope == "patterns" and not c.layers
    beyond = not all(0 < density <= 1 for density in c.layers.values())
    less = bound and c.max_density < left
    return [
        ("unit-shape", bool(shape), reason, fitting),
        (key, bool(told), told, fit),
        ("sparsity", other, "the pattern says how much goes", f"{share}, or {OUT}"),
        ("layers", lacking, "scope patterns needs some", "--layers PATTERN DENSITY"),
        ("layers", beyond, "not densities", "above 0, up to 1"),
        ("min-density", c.min_density > left, "more than the sparsity leaves", f"0 to {left:g}"),
        ("max-density", less, "less than the sparsity leaves", f"{left:g} to 1"),
    ]


def _how_found(c: AllOptions, task: Task) -> list[Conflict]:
    tokens = bool(task.tokens) and task.tokenizer is not None
    taught = "a teacher of another run gives tokens that are gone some probability"
    elsewhere = c.vocabulary == "used" and bool(c.teacher)
    unseen = f"task {c.task} has no example to follow"
    return [
        *only(c, not tokens, f"task {c.task} reads no tokens", vocabulary="full"),
        ("vocabulary", elsewhere, taught, "full, or no --teacher"),
        *only(c, task.dummy is None, unseen, structure="auto"),
    ]


def _by_itself(c: AllOptions, score: Score) -> list[Conflict]:
    """A score that prunes by a step of its own leaves no choice to the selection."""
    if score.step is None:
        return []
    name = f"score {c.score}"
    why, summed = f"{name} selects by itself, tensor by tensor", {"combine": "sum"}
    return [
        *only(c, c.unit == "weight", why, scope="layer"),
        ("sparsity", c.sparsity is None, f"{name} needs a sparsity", "a number"),
        *only(c, True, why, min_density=0.0, max_density=1.0, **summed, normalise="none"),
        *only(c, True, why, masks="global", schedule=Not("regrow")),
        *only(c, True, f"{name} inverts its sums", score_wire="fp32"),
        *only(c, True, f"{name} sets the weights that stay", rewind=None),
    ]


def _making_up(c: AllOptions, score: Score) -> list[Conflict]:
    """Biases take on what the mask removes: by sums of all clients, once it is decided."""
    does, name = score.makes_up is not None and c.sparsity != 0.0, f"score {c.score}"
    sums, sets = f"{name} adds the mean of all clients to biases", f"{name} sets biases"
    shape = f"{name} gives layers biases, and what is kept is of the shapes before"
    return [
        *only(c, does, sums, combine="sum", normalise="none", masks="global"),
        *only(c, does, sets, rewind=None, schedule=_STEADY, method="global"),
        (
            "adapters",
            does and c.adapters != "none",
            f"{sets}, and adapters are of whole layers",
            f"two runs: --score {c.score} --local-steps 0 --shrink end --out CUT, "
            f"then --init CUT --adapters {c.adapters} --sparsity 0",
        ),
        *only(c, does, shape, error_feedback=False, scaffold=False, blend="none", moving="none"),
    ]


def _remembering(c: AllOptions, score: Score) -> list[Conflict]:
    """What a score whose clients remember something does not go with."""
    hidden = f"what clients remember for score {c.score} is in no bound of what they send"
    once = f"score {c.score} remembers one answer of a client in a round"
    shape = f"what clients remember for score {c.score} is of one shape"
    does = score.remembers
    return [
        *only(c, does, hidden, dp="none"),
        *only(c, does, "clients remember nothing of a secure sum", secure="none"),
        *only(c, does, once, masks="global", calibration="dense", score_during="pass"),
        *only(c, does, shape, shrink="never", reduce=()),
    ]


def _when(c: AllOptions, score: Score) -> list[Conflict]:
    regrows, start = c.schedule == "regrow", f"score {c.score} is taken before any training"
    constant = "regrow exchanges single weights at constant sparsity"
    again = f"score {c.score} says the same of what is left"
    soon = regrows and c.end == c.warmup + 1
    later = f"{c.warmup + 2} to {c.rounds}"
    early = (c.rewind or 0) > c.warmup
    return [
        *only(c, regrows, constant, unit="weight", scope=EXCHANGING, rewind=None, score_steps=1),
        *only(c, regrows, constant, min_density=0.0, max_density=1.0),
        *only(c, score.at_start, start, warmup=0, schedule="one-shot"),
        ("end", soon, "no round is left to exchange in", later),
        *only(c, not score.rescored, again, score_steps=1),
        ("rewind", early, "pruning begins before", f"0 to {c.warmup}"),
    ]


def _ended(c: AllOptions) -> list[Conflict]:
    """Which round's model is the result, and that it may be an earlier one than the last."""
    best, stops = c.save == "best", c.patience > 0
    sums = "sums are asked about the model of the last round"
    alone = [arm for arm in c.baselines if arm in (LOCAL, CENTRAL)]
    arms = f"arm {alone[0] if alone else ''} is played by the rounds of the run"
    return [
        *only(c, best or stops, sums, quantise_by=None),
        *only(c, best, "parts are taken out of the last model", reduce=()),
        ("baselines", (best or stops) and bool(alone), arms, "dense, random, magnitude, lottery"),
    ]


def _shrunk(c: AllOptions) -> list[Conflict]:
    goes_on, regrows = bool(c.init), c.schedule == "regrow"
    same = goes_on and bool(c.baselines) and c.sparsity == 0.0
    idle = "nothing further is pruned, so that they are the run itself"
    dense = goes_on and "dense" in c.baselines
    back = "what is cut out cannot grow back"
    fixed = c.schedule in ("regrow", "adaptive") or c.adapters != "none" or goes_on
    early = "lottery" in c.baselines and (fixed or c.reconstruct is not None or c.shrink == "every")
    other = "none, or random with a further sparsity"
    return [
        *only(c, regrows, back, shrink=("never", "end")),
        ("baselines", same, idle, other),
        ("baselines", dense, "it begins pruned", "random, magnitude"),
        ("baselines", early, "lottery goes back to dense weights", "dense, random, magnitude"),
        ("rewind", goes_on and c.rewind == 0, "it begins where another run ended", "1 on"),
    ]


def _adaptive(c: AllOptions, score: Score) -> list[Conflict]:
    if c.schedule != "adaptive":
        return []
    bound, able = "an adaptive schedule needs an upper bound", c.adaptive == "layer"
    tried = "several masks are tried before one is taken"
    units = (*WITHIN_TENSOR, "head", "neuron")
    alone = f"score {c.score} selects by itself"
    return [
        ("sparsity", c.sparsity is None, bound, "a number"),
        *only(c, score.step is not None, alone, schedule=_STEADY),
        *only(c, True, tried, masks="global", score_during="pass", calibration="dense"),
        *only(c, True, tried, score_steps=1),
        *only(c, able, "layer by layer needs parts of layers", unit=units),
        *only(c, able, "the pattern says how much goes in a layer", unit=Not("n:m")),
        *only(c, able, "layer by layer every one is ranked by itself", scope="layer"),
        *only(c, able, "losses decide what a layer keeps", max_density=1.0),
    ]
