"""What a configuration refuses before anything starts: unknown names, values that do not fit."""

from __future__ import annotations

import encodings
from collections.abc import Mapping
from typing import Any

from fedprune.codec.stochastic_rounding import BITS
from fedprune.config.adapter_conflicts import adapter_conflicts
from fedprune.config.conflicts import conflicts
from fedprune.config.learning_conflicts import learning_conflicts, untrained_conflicts
from fedprune.config.measured_noise import noised_conflicts
from fedprune.config.privacy_conflicts import privacy_conflicts
from fedprune.config.sections import AllOptions
from fedprune.config.streamed import why_unstreamed
from fedprune.options.conditions import only
from fedprune.options.refusal import OUT, Conflict, counted, refuse
from fedprune.options.section import check_names, names_in, unread
from fedprune.scores.catalog import scores_of
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.pretrained import from_files
from fedprune.tasks.task import Task


def names_of(plugin: str) -> dict[str, Mapping[str, Any]]:
    """The table that an option's names are in, by key, with those that a plug-in adds."""
    return names_in(AllOptions, plugin)


def check_options(config: AllOptions) -> None:
    """Refuse names that are in no table, values that do not fit together or that nothing reads.

    Raises:
        ConfigError: key=value: what is wrong; allowed: what is.
    """
    c = config
    task, score = tasks_of(c.plugin)[c.task], scores_of(c.plugin)[c.score]
    check_names(AllOptions, c)
    if c.split not in task.splits:
        refuse("split", c.split, f"task {c.task} has no such split", ", ".join(task.splits))
    _raise_first(c, _of_the_task(c, task))
    for refusal in unread(AllOptions, c):
        raise refusal
    found = [*_out_of_bounds(c), *_of_the_engine(c), *_sent(c, task)]
    found += untrained_conflicts(c, score, task)
    found += [*conflicts(c, score, task), *learning_conflicts(c), *adapter_conflicts(c, score)]
    _raise_first(c, [*found, *privacy_conflicts(c)])


def check_noise(config: AllOptions) -> None:
    """Refuse, as `check_options`, what the noise, all of it known, makes nonsense of."""
    _raise_first(config, noised_conflicts(config))


def _raise_first(c: AllOptions, found: list[Conflict]) -> None:
    for key, wrong, reason, allowed in found:
        if wrong:
            refuse(key, vars(c)[key.replace("-", "_")], reason, allowed)


def _of_the_task(c: AllOptions, task: Task) -> list[Conflict]:
    """Values that the task has no use for."""
    models = ", ".join(task.models) or OUT
    unknown = bool(c.model) and c.model not in task.models and not task.paths
    own = f"{c.model or 'its model'} has its own"
    readers = f"{OUT}, or task {', '.join(n for n, t in tasks_of(c.plugin).items() if t.folder)}"
    sized = task.tokenizer is not None or "length" in task.defaults
    names, known = c.class_names, task.class_names
    count = len(known) if isinstance(known, tuple) else len(names)
    has, classes = f"task {c.task} has", counted(count, "class", "classes")
    other = bool(names) and len(names) != count
    column, nowhere = f"task {c.task} reads no such column", not _known_encoding(c.encoding)
    return [
        *only(c, known is None, f"{has} no classes", class_names=()),
        ("class-names", other, f"{has} {classes}", counted(count, "name")),
        ("model", unknown, f"{has} no such model", models),
        *only(c, not sized, "no text", length=None),
        *only(c, c.model not in SMALL_MODELS, own, depth=None, width=None),
        ("data", bool(c.data) and not task.folder, f"task {c.task} reads none", readers),
        *only(c, not task.columns, "no table is read", encoding=None),
        ("encoding", nowhere, "no encoding of text", "utf-8, latin-1, ..."),
        *only(c, "text" not in task.columns, column, text_column=None),
        *only(c, "label" not in task.columns, column, label_column=None),
        *only(c, "target" not in task.columns, column, target_column=None),
        *only(c, "client" not in task.columns, column, client_column=None),
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


def _sent(c: AllOptions, task: Task) -> list[Conflict]:
    """What is sent, and what clients keep back of it."""
    files = task.paths and from_files(c.model, task.models)
    scratch = not files and c.adapters == "none"
    keeps, whole = c.error_feedback, c.error_feedback and (c.uplink or c.wire) not in BITS
    kept, never = "residuals of --error-feedback", "never, or no --error-feedback"
    arms = "with --error-feedback clients keep one residual, not one for each arm"
    others = keeps and bool(c.baselines)
    shrinks = keeps and c.shrink != "never"
    random = f"false, or --uplink {', '.join(BITS)}"
    return [
        ("base", c.base == "sent" and scratch, "its weights come from no file", "auto"),
        ("stream", c.stream == "on" and bool(why_unstreamed(c)), why_unstreamed(c), "auto, off"),
        ("error-feedback", whole, "nothing is rounded at random", random),
        *only(c, keeps, f"{kept} are of one mask for all", masks="global"),
        ("shrink", shrinks, f"{kept} are of one shape", never),
        ("baselines", others, arms, "none, and a run of their own"),
    ]


def _out_of_bounds(c: AllOptions) -> list[Conflict]:
    """Values that contradict others."""
    prunes, first = c.sparsity != 0.0, c.warmup + 1
    late = "the last pruning is not between warm-up and the last round"
    once = f"{c.schedule} prunes once, in round {first}"
    steps = "steps and epochs exclude each other"
    single = c.schedule == "one-shot" and prunes
    none, outside = prunes and c.warmup >= c.rounds, prunes and not c.warmup < c.end <= c.rounds
    both = c.local_steps > 0 and c.local_epochs > 0
    few = "more clients than there are"
    return [
        ("cohort", c.cohort > c.clients, few, f"1 to {c.clients}"),
        ("hosts", c.hosts > c.clients, "more hosts than clients", f"1 to {c.clients}"),
        ("min-clients", c.min_clients > c.cohort, "more than the cohort", f"1 to {c.cohort}"),
        ("warmup", none, "no round is left to prune in", f"0 to {c.rounds - 1}"),
        ("end", outside, late, f"{first} to {c.rounds}"),
        ("end", single and c.end != first, once, f"{first}, or {OUT}"),
        ("frequency", single and c.frequency != 1, once, f"1, or {OUT}"),
        ("local-steps", both, steps, "one of them"),
    ]


def _of_the_engine(c: AllOptions) -> list[Conflict]:
    """Processes and GPUs that the engine has no use for."""
    inline, cluster = c.engine == "inline", bool(c.ray_address)
    here, ray = "inline runs in this process", "0 or 1, or --engine ray"
    theirs, used = "under flwr run Flower's own settings decide", "a cluster's own processors"
    outside = c.engine == "flower" and c.workers > 0
    clock = "the simulated clock knows what everybody takes"
    none = isinstance(c.deadline, float) and not c.deadline > 0
    return [
        ("gpus", inline and c.gpus > 0, f"{here}, nothing is shared out", "-1 (if there), 0"),
        ("workers", inline and c.workers > 1, here, ray),
        ("workers", outside, theirs, OUT),
        ("workers", cluster and c.workers > 0, f"{used} are all used", "0"),
        ("deadline", bool(c.profiles) and c.deadline == "auto", clock, "a number, or left out"),
        ("deadline", none, "nobody answers in no time", "above 0, or auto"),
    ]
