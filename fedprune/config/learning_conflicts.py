"""Choices about how clients learn that contradict each other."""

from __future__ import annotations

from fedprune.config.defaults import method_given, usual_of
from fedprune.config.rates import prunes_in
from fedprune.config.sections import AllOptions
from fedprune.learning.options import Averaging, Tuning, trains
from fedprune.learning.robust_rules import ROBUST, most_byzantine
from fedprune.options.conditions import Not, only
from fedprune.options.option import options_of
from fedprune.options.refusal import OUT, Conflict
from fedprune.options.section import with_derived
from fedprune.scores.score import Score
from fedprune.selection.options import followed_method
from fedprune.tasks.task import Task

_SINGLE = ("weight", "n:m")


def learning_conflicts(c: AllOptions) -> list[Conflict]:
    """Every possible conflict of a configuration's learning, with whether it is one."""
    grouped = c.group_lasso > 0 and c.unit in _SINGLE
    groupless = f"unit {c.unit} has no groups of weights"
    idle = c.lr_rewind and not any(prunes_in(c, r) for r in range(2, c.rounds + 1))
    return [
        ("group-lasso", grouped, groupless, "--l1, or another --unit"),
        *_teaching(c),
        *_kept_change(c),
        *_fits(c),
        *_robust(c),
        *_bounded(c),
        *_at_once(c),
        *_corrected(c),
        ("lr-rewind", idle, "no pruning is after round one", "false"),
    ]


def _teaching(c: AllOptions) -> list[Conflict]:
    keys = ("distil", "distil_hidden", "distil_attention")
    heaviest = max(keys, key=lambda key: float(vars(c)[key]))
    dense = vars(c)[heaviest] > 0 and c.sparsity == 0.0 and not c.reduce and not c.teacher
    none = "nothing is pruned, so that there is no model from before"
    unseen = "a compiled model is not watched"
    twice = "attention that is computed twice is not kept"
    return [
        (heaviest.replace("_", "-"), dense, none, "--teacher, or 0"),
        *only(c, c.compile, unseen, distil_hidden=0.0, distil_attention=0.0),
        *only(c, c.checkpointing, twice, distil_attention=0.0),
    ]


def _kept_change(c: AllOptions) -> list[Conflict]:
    grid, whole = c.blend_grid or (1.0, 0.0), "1 and others"
    apart, beyond = "clients end under masks of their own", not all(0 <= x <= 2 for x in grid)
    last = c.end >= c.rounds
    short = "the last pruning leaves one round to average"
    return [
        ("blend-grid", 1.0 not in grid, "the whole change is not in it", whole),
        ("blend-grid", beyond, "not shares", "0 to 2"),
        ("blend-grid", len(grid) == 1, "there is nothing to choose", whole),
        *only(c, c.masks != "global", apart, blend="none"),
        ("moving", c.moving == "swa" and last, short, "ema, or an earlier --end"),
    ]


def _fits(c: AllOptions) -> list[Conflict]:
    wanted, late = c.reconstruct is not None, "the mask is decided after tuning"
    whole = c.unit not in {*_SINGLE, "block", "column"}
    read = f"of unit {c.unit} the outputs go, and what stays reads nothing that is missing"
    tuning, regrows = c.score_during == "tune", c.schedule == "regrow"
    return [
        ("reconstruct", c.reconstruct == "inputs" and whole, read, "outputs"),
        *only(c, c.rewind is not None, "what stays goes back to a round", reconstruct=None),
        *only(c, regrows, "what grows back starts at 0", reconstruct=None),
        ("reconstruct", wanted and c.masks != "global", late, f"{OUT}, or --masks global"),
        ("reconstruct", wanted and tuning, late, f"{OUT}, or --score-during pass"),
    ]


def _robust(c: AllOptions) -> list[Conflict]:
    """What a rule that looks at changes one by one does not go together with."""
    on, needs, f = c.robust != "none", ROBUST[c.robust].needs, c.byzantine or 0
    most, least = (most_byzantine(needs, c.cohort), needs(f)) if needs else (0, 0)
    own = "clients end under masks of their own, and their changes are of different weights"
    kept = "what was kept back is made up for in a mean, and no client's change is sure to count"
    alike = "every client counts alike under --robust: how many labels it has is its own word"
    small = f"a cohort of {c.cohort} is too small to leave one out"
    larger = f"another rule, or --cohort {needs(1) if needs else 0} or more"
    many = f"too many for a cohort of {c.cohort}"
    more, enough = f"{c.robust} with byzantine={f} needs more", f"{least} to {c.cohort}"
    counts, residual = needs is not None, on and c.error_feedback
    return [
        ("robust", on and c.masks != "global", own, "none, or --masks global"),
        ("robust", residual, kept, "none, or no --error-feedback"),
        *only(c, on, alike, weighting="equal", score_weighting="equal"),
        ("robust", counts and most < 1, small, larger),
        ("byzantine", counts and f > most, many, f"1 to {most}"),
        ("min-clients", counts and c.min_clients < least, more, enough),
    ]


def _corrected(c: AllOptions) -> list[Conflict]:
    """What control variates, which are mean gradients of a client's steps, do not go with."""
    step = "a control variate is the mean gradient of so many plain steps"
    mean = "the common control variate is a plain mean over clients"
    kept, arms = "control variates are of one mask for all", "they are of one arm"
    shape, hidden = "control variates are of one shape", "no bound is on control variates"
    on, regrows = c.scaffold, "a weight that grows back has no variate, or an old one"
    return [
        *only(c, on, step, momentum=0.0, clip=0.0, l1=0.0, group_lasso=0.0, local_epochs=0),
        *only(c, on, mean, weighting="equal", robust="none", error_feedback=False),
        *only(c, on, kept, masks="global"),
        *only(c, on, regrows, schedule=Not("regrow")),
        *only(c, on, shape, shrink="never", reduce=()),
        *only(c, on, hidden, dp="none"),
        *only(c, on, "clients remember nothing of a secure sum", secure="none"),
        *only(c, on, arms, baselines=()),
        *only(c, on, "control variates correct the steps of one client", batched=1),
    ]


def _bounded(c: AllOptions) -> list[Conflict]:
    zero = isinstance(c.max_norm, float) and not c.max_norm > 0
    rising = c.max_norm == "auto" and c.lr_rewind
    again, way = "norms rise again at every pruning", "a number, or no --lr-rewind"
    return [
        ("max-norm", zero, "no change has such a norm", "above 0, or auto"),
        ("max-norm", rising, again, way),
    ]


def _at_once(c: AllOptions) -> list[Conflict]:
    """What goes client by client, where several are one computation."""
    on, single = c.batched > 1, "--batched has no model of one client"
    return [
        ("batched", on and c.batched > c.cohort, "more than the cohort", f"1 to {c.cohort}"),
        *only(c, on, f"{single} to compile", compile=False),
        *only(c, on, f"{single} to go through again", checkpointing=False),
        *only(c, on, f"{single} to look into", distil_hidden=0.0, distil_attention=0.0),
        *only(c, on, f"{single} to watch", score_during="pass"),
        *only(c, on, "--batched computes clients of one host together", secure="none"),
        *only(c, on, "--batched takes no gradients of single examples", dp=("none", "client")),
    ]


_READ = {"local_steps", "local_epochs", "batch_size", "score_batch", "weighting"}
"""Options of training and averaging that scoring and measuring read too, or that say this."""

_OTHERS = {"score_during": "pass", "error_feedback": False}
"""Of other sections, with the only value that goes without training."""


def untrained_conflicts(c: AllOptions, score: Score, task: Task) -> list[Conflict]:
    """Every option that only training reads and that has another value than it has by default."""
    if trains(c):
        return []
    training = {*options_of(Tuning), *options_of(Averaging)} - _READ
    method = method_given(vars(c))
    its = {**method.usual, **method.sets} if method and method.untrained else {}
    others = {key: value for key, value in vars(c).items() if key not in training}
    others |= {key: value for key, value in its.items() if key in training}
    usual = with_derived(AllOptions, others, usual_of(task, score))
    wanted = {key: usual[key] for key in sorted(training)}
    wanted |= {**_OTHERS, "method": c.method if its else followed_method(c)}
    why = "nobody trains (--local-steps 0, no --local-epochs)"
    found: list[Conflict] = [
        (key.replace("_", "-"), getattr(c, key) != value, why, f"{OUT}, or steps above 0")
        for key, value in wanted.items()
    ]
    nothing = c.sparsity == 0.0 and not c.reduce
    return [("local-steps", nothing, "nobody trains and nothing is pruned", "above 0"), *found]
