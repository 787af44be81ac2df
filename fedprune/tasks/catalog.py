"""The tasks by name. A new one is a module with a `Task` and a line here."""

from __future__ import annotations

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
    """How many partitions: all that the data has, if it says whose a row is and is here; else 20.

    Args:
        c: the options, as far as they are known without this number.

    Raises:
        ValueError: the data cannot be read.
    """
    population = tasks_of(c.plugin)[c.task].population
    if population is None or c.split != "natural":
        return 20
    try:
        return population(c).possible
    except (FileNotFoundError, LookupError, TypeError):  # no such file or encoding: said later
        return 20


def tasks_of(plugin: str) -> dict[str, Task]:
    """Every task by name; a plug-in's come last and may replace a built-in one."""
    return {**TASKS, **table_in(plugin, "TASKS", Task)}
