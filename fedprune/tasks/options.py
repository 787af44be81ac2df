"""Options of what is learned."""

from __future__ import annotations

from typing import Any, Literal

from fedprune.options.conditions import Not
from fedprune.options.name_table import NameTable
from fedprune.options.option import BY_TASK, Count, option
from fedprune.options.section import Section

_NOISE = {"dp": ("client", "example")}


def _clients(c: Any) -> int:
    from fedprune.tasks.catalog import clients_of

    return clients_of(c)


class Data(Section):
    """What is learned, on whose data."""

    task: str = option(
        "what is learned",
        "task",
        "shakespeare",
        names=NameTable("fedprune.tasks.catalog", "TASKS", "tasks_of"),
    )
    clients: Count = option(
        "what is learned",
        "number of clients: parts of the data (default 20; with --client-column all there are)",
        derived=_clients,
    )
    split: str = option(
        "what is learned",
        "how rows are given to clients",
        BY_TASK,
        derived=lambda c: c.usual("split", BY_TASK) if c.client_column is None else "natural",
        names=NameTable("fedprune.tasks.splits", "SPLITS"),
    )
    alpha: float | None = option(
        "what is learned",
        "concentration of the Dirichlet distribution",
        0.5,
        when={"split": "dirichlet"},
        gt=0,
    )
    model: str = option("what is learned", "family, folder or hub id (see --list)", BY_TASK)
    depth: int | None = option(
        "what is learned", "blocks of a model built from scratch (default 2)", None, ge=1, le=64
    )
    width: int | None = option(
        "what is learned",
        "width of a model built from scratch, a multiple of 16, with a head for each 16 "
        "(default 64)",
        None,
        ge=16,
        le=4096,
        multiple_of=16,
    )
    length: int | None = option(
        "what is learned",
        "tokens of a text, or pixels of an image's side (default: by task)",
        None,
        ge=8,
        le=8192,
    )
    data: str = option("what is learned", "file or folder, for tasks that read one", "")
    encoding: str | None = option(
        "what is learned",
        "encoding of text files in --data without a byte order mark (default utf-8)",
        None,
    )
    text_column: str | None = option(
        "what is learned", "column of the text in --data (default text)", None
    )
    label_column: str | None = option(
        "what is learned", "column of the class in --data (default label)", None
    )
    target_column: str | None = option(
        "what is learned",
        "column of the text to write in --data, for text-to-text (default target)",
        None,
    )
    class_names: tuple[str, ...] = option(
        "what is learned",
        "names of the classes, in their order (default: the task's, or the labels in --data)",
        (),
        strict=False,
    )
    client_column: str | None = option(
        "what is learned",
        "column of --data that names the client of a row",
        when={"split": "natural"},
    )
    small_owners: Literal["train-only", "group", "drop"] | None = option(
        "what is learned",
        "what becomes of owners with too few rows to split into train, validation and test",
        "train-only",
        when={"client_column": Not(None)},
        names=NameTable("fedprune.tasks.owners", "SMALL_OWNERS"),
    )
    plugin: str = option("what is learned", "Python file with your own SCORES or TASKS", "")
    init: str = option(
        "what is learned",
        "folder of a run whose model to start from; its masks and structure are kept, the data "
        "and task are this run's",
        "",
    )
    seed: int = option("what is learned", "seed of every random number", 0, ge=0)
    dp: Literal["none", "client", "example"] = option(
        "privacy", "differential privacy of whole clients, or of single examples", "none"
    )
    metrics: Literal["exact", "noised"] = option(
        "privacy",
        "release measured losses and counts exactly, or with noise (default, unless there is a "
        "--panel)",
        "exact",
        when=_NOISE,
        derived=lambda c: "exact" if c.panel else "noised",
    )
    panel: int = option(
        "privacy",
        "number of clients, the last ones, that only measure; their data is not protected",
        0,
        when=_NOISE,
        ge=0,
    )


def is_trained(c: Data) -> bool:
    """Whether the model of a configuration is trained; what says nothing of that may train it."""
    return any(getattr(c, key, 1) for key in ("local_steps", "local_epochs"))
