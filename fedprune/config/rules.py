"""What a configuration refuses before anything starts: unknown names, values that do not fit."""

from __future__ import annotations

import encodings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedprune.codec.stochastic_rounding import BITS
from fedprune.codec.wire import SCORE_TYPES, UPLINK_TYPES, VALUE_TYPES
from fedprune.config.conflicts import conflicts
from fedprune.config.learning_conflicts import refusals
from fedprune.config.local_privacy_conflicts import local_conflicts
from fedprune.config.privacy_conflicts import privacy_conflicts
from fedprune.learning.averaging import AVERAGES, MASKS
from fedprune.learning.blending import BLENDS
from fedprune.learning.local_training import OPTIMIZERS
from fedprune.learning.moving_average import MOVING
from fedprune.learning.robust import ROBUST
from fedprune.options.refusal import (
    Conflict,
    counted,
    named,
    refuse,
)
from fedprune.redundancy.reconstruction import RECONSTRUCTIONS
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import COMBINES, NORMALISE
from fedprune.selection.ladder import ADAPTIVE
from fedprune.selection.pools import POOLS
from fedprune.selection.schedules import SCHEDULES
from fedprune.selection.select import SCOPES
from fedprune.selection.units import UNITS
from fedprune.structure.channels.groups import STRUCTURES
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.splits import SPLITS
from fedprune.tasks.task import Task

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig

BASELINES = {
    "dense": "the same rounds and seed without pruning",
    "random": "the same rounds, seed and schedule with a random mask",
}


def names_of(plugin: str) -> dict[str, Mapping[str, object]]:
    """The table that an option's names are in, by key, a plug-in's own scores included."""
    return {
        "score": scores_of(plugin),
        "scope": SCOPES,
        "schedule": SCHEDULES,
        "unit": UNITS,
        "structure": STRUCTURES,
        "pool": POOLS,
        "combine": COMBINES,
        "normalise": NORMALISE,
        "masks": MASKS,
        "average": AVERAGES,
        "robust": ROBUST,
        "vote_scope": SCOPES,
        "optimizer": OPTIMIZERS,
        "adaptive": ADAPTIVE,
        "blend": BLENDS,
        "moving": MOVING,
        "reconstruct": RECONSTRUCTIONS,
        "wire": VALUE_TYPES,
        "uplink": UPLINK_TYPES,
        "score_wire": SCORE_TYPES,
        "split": SPLITS,
    }


def check(config: RunConfig) -> None:
    """Refuse names that are in no table and values that do not fit together.

    Raises:
        ValueError: key=value: what is wrong; allowed: what is.
    """
    c = config
    task, scores = tasks_of(c.plugin)[c.task], scores_of(c.plugin)
    for key, table in names_of(c.plugin).items():
        if vars(c)[key] is not None:
            named((key.replace("_", "-"), vars(c)[key]), table)
    if c.split not in task.splits:
        refuse("split", c.split, f"task {c.task} has no such split", ", ".join(task.splits))
    found = [*_out_of_bounds(c), *_of_the_task(c, task), *_unused(c), *_sent(c)]
    found += [*conflicts(c, scores[c.score], task), *refusals(c)]
    found += [*privacy_conflicts(c), *local_conflicts(c, scores[c.score])]
    for key, wrong, reason, allowed in found:
        if wrong:
            refuse(key, vars(c)[key.replace("-", "_")], reason, allowed)


def _of_the_task(c: RunConfig, task: Task) -> list[Conflict]:
    """Values that the task has no use for."""
    models = ", ".join(task.models) or "leave it out"
    unknown = bool(c.model) and c.model not in task.models and not task.paths
    out, family = "leave it out", c.model in SMALL_MODELS
    own = f"{c.model or 'its model'} has its own"
    text = [
        (f"{name}-column", vars(c)[f"{name}_column"] is not None and f"{name}_column" not in read)
        for read in [{f"{column}_column" for column in task.columns}]
        for name in ("text", "label", "target", "client")
    ]
    sized = task.tokenizer is not None or "length" in task.defaults
    names, known = c.class_names, task.class_names
    count = len(known) if isinstance(known, tuple) else len(names)
    return [
        ("class-names", bool(names) and known is None, f"task {c.task} has no classes", out),
        (
            "class-names",
            bool(names) and len(names) != count,
            f"task {c.task} has {counted(count, 'class', 'classes')}",
            counted(count, "name"),
        ),
        ("model", unknown, f"task {c.task} has no such model", models),
        ("length", c.length is not None and not sized, "no text", out),
        ("depth", c.depth is not None and not family, own, out),
        ("width", c.width is not None and not family, own, out),
        ("data", bool(c.data) and not task.folder, f"task {c.task} reads no folder", out),
        ("encoding", c.encoding is not None and not task.columns, "no table is read", out),
        ("encoding", not _known_encoding(c.encoding), "no encoding of text", "utf-8, latin-1, ..."),
        *[(key, wrong, f"task {c.task} reads no such column", out) for key, wrong in text],
    ]


def _known_encoding(name: str | None) -> bool:
    """Whether the interpreter itself has the encoding: packages add codecs that take any name."""
    try:
        return name is None or (
            encodings.search_function(encodings.normalize_encoding(name.lower())) is not None
            and isinstance(b"a".decode(name), str)
        )
    except UnicodeDecodeError:  # half a unit of UTF-16
        return True
    except (LookupError, ValueError):
        return False


def _sent(c: RunConfig) -> list[Conflict]:
    """What clients send, and what they keep back of it."""
    keeps, rounds = c.error_feedback, (c.uplink or c.wire) in BITS
    kept = "residuals of --error-feedback"
    never = "never, or no --error-feedback"
    return [
        (
            "error-feedback",
            keeps and not rounds,
            "nothing is rounded at random",
            f"false, or --uplink {', '.join(BITS)}",
        ),
        ("masks", keeps and c.masks != "global", f"{kept} are of one mask for all", "global"),
        ("shrink", keeps and c.shrink != "never", f"{kept} are of one shape", never),
        (
            "baselines",
            keeps and bool(c.baselines),
            "with --error-feedback clients keep one residual, not one for each arm",
            "none, and a run of their own",
        ),
    ]


def _out_of_bounds(c: RunConfig) -> list[Conflict]:
    """Values that contradict others."""
    prunes = c.sparsity != 0.0
    late = "the last pruning is not between warm-up and the last round"
    once = f"{c.schedule} prunes once, in round {c.warmup + 1}"
    steps = "steps and epochs exclude each other, and one must be above 0"
    last_only = c.schedule == "one-shot" and prunes
    return [
        ("cohort", c.cohort > c.clients, "more clients than there are", f"1 to {c.clients}"),
        ("hosts", c.hosts > c.clients, "more hosts than clients", f"1 to {c.clients}"),
        ("min-clients", c.min_clients > c.cohort, "more than the cohort", f"1 to {c.cohort}"),
        (
            "warmup",
            prunes and c.warmup >= c.rounds,
            "no round is left to prune in",
            f"0 to {c.rounds - 1}",
        ),
        (
            "end",
            prunes and not c.warmup < c.end <= c.rounds,
            late,
            f"{c.warmup + 1} to {c.rounds}",
        ),
        ("end", last_only and c.end != c.warmup + 1, once, f"{c.warmup + 1}, or leave it out"),
        ("frequency", last_only and c.frequency != 1, once, "1, or leave it out"),
        ("local-steps", (c.local_steps > 0) == (c.local_epochs > 0), steps, "one of them"),
    ]


def _unused(c: RunConfig) -> list[Conflict]:
    """Values that nothing would read: better refused than ignored."""
    inline, cluster = c.engine == "inline", bool(c.ray_address)
    here = "inline runs in this process"
    outside, theirs = c.engine == "flower", "under flwr run Flower's own settings decide"
    out = "leave it out"
    return [
        (
            "client-column",
            c.client_column is not None and c.split != "natural",
            f"split is {c.split}",
            out,
        ),
        (
            "small-owners",
            c.small_owners is not None and c.client_column is None,
            "no --client-column says whose a row is",
            out,
        ),
        ("alpha", c.alpha is not None and c.split != "dirichlet", f"split is {c.split}", out),
        (
            "momentum",
            c.momentum is not None and c.optimizer != "sgd",
            f"{c.optimizer} has none",
            out,
        ),
        ("gpus", inline and c.gpus > 0, f"{here}, nothing is shared out", "-1 (if there), 0"),
        ("workers", inline and c.workers > 1, here, "0 or 1, or --engine ray"),
        ("workers", outside and c.workers > 0, theirs, "leave it out"),
        ("ray-address", outside and cluster, theirs, out),
        ("workers", cluster and c.workers > 0, "a cluster's own processors are all used", "0"),
        ("ray-address", inline and cluster, "inline does not use Ray", out),
    ]
