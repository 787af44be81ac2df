"""The tasks by name. A new one is a module with a `Task` and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from fedprune.options.plugins import table_in
from fedprune.tasks import (
    domains,
    encoder,
    imagefolder,
    images,
    masked,
    multilabel,
    regression,
    restore,
    speeches,
    tagging,
    userdata,
)
from fedprune.tasks.task import Task

TASKS: dict[str, Task] = {
    "shakespeare": speeches.SHAKESPEARE,
    "shakespeare-masked": masked.SHAKESPEARE_MASKED,
    "shakespeare-restore": restore.SHAKESPEARE_RESTORE,
    "presidents": speeches.PRESIDENTS,
    "domains": domains.DOMAIN_TASK,
    "r8": encoder.R8,
    "bbc": encoder.BBC,
    "text-classification": userdata.CLASSIFICATION,
    "text-regression": regression.REGRESSION,
    "multi-label": multilabel.MULTI_LABEL,
    "token-classification": tagging.TAGGING,
    "language-modelling": userdata.LANGUAGE,
    "masked-language-modelling": userdata.MASKED,
    "text-to-text": userdata.TEXT_TO_TEXT,
    "image-classification": imagefolder.IMAGE_FOLDER,
    "digits": images.DIGITS,
    "fashion-mnist": images.FASHION_MNIST,
}


def clients_of(c: Any) -> int:
    """How many partitions: as many as the task or its data says (of a file that is here), else 20.

    Raises:
        ValueError: the data cannot be read.
    """
    task = tasks_of(c.plugin)[c.task]
    if "clients" in task.defaults:
        return int(task.defaults["clients"])
    population = task.population
    if population is None or c.split != "natural":
        return 20
    try:
        return population(c).possible
    except (FileNotFoundError, LookupError, TypeError):  # no such file or encoding: said later
        return 20


def tasks_of(plugin: str) -> dict[str, Task]:
    """Every task by name; a plug-in's come last and may replace a built-in one."""
    return {**TASKS, **table_in(plugin, "TASKS", Task)}


OWN = "own"
"""The name that a task of a program has while it runs."""


@contextmanager
def known_as_own(task: Task) -> Iterator[None]:
    """Within the block a configuration can name the task `OWN`; afterwards it is forgotten."""
    before = TASKS.get(OWN)
    TASKS[OWN] = task
    try:
        yield
    finally:
        del TASKS[OWN]
        if before is not None:
            TASKS[OWN] = before


def known_if_own(task: Task | None) -> Callable[[], AbstractContextManager[None]]:
    """Blocks within which a task is known as `OWN`; None: blocks that change nothing."""
    return nullcontext if task is None else lambda: known_as_own(task)
