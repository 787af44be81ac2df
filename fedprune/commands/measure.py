"""``fedprune measure``: what a model weighs, how fast it is, how good it is, beside another."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Screen

from fedprune.codec.coded_file import CODED_NAME
from fedprune.commands.inputs import quality_of
from fedprune.commands.memory import peak_of
from fedprune.commands.subject import Subject, chosen_subject, given_keys, subject
from fedprune.config import RunConfig, configure
from fedprune.options.refusal import ConfigError
from fedprune.protocol.models import dense_model
from fedprune.records.figures import Figures, compare_speed, example_of, figures_of
from fedprune.report.figures import figure_table, notes_on
from fedprune.report.tables import Table
from fedprune.runtime.sums import summary_in

DENSE = "dense"


def run(arguments: Namespace) -> int:
    """Measure and print."""
    looked = chosen_subject(arguments)
    config = _at_length(looked.config, arguments.tokens)
    other = _baseline(looked, arguments.baseline)
    named = {
        _short(looked.name): _figures(looked, config, arguments, looked.name, arguments.task),
        f"{_short(other.name)} (baseline)": _figures(
            other, config, arguments, arguments.baseline, None
        ),
    }
    first, second = named.values()
    forward = example_of(looked.model, config, arguments.batch)
    if forward is not None:
        repeats = {key: vars(arguments)[key] for key in ("repeats", "warmup", "threads")}
        mine, theirs = compare_speed(looked.model, other.model, forward, **repeats)
        first |= mine
        second |= theirs
    notes = [*notes_on(first, second), *_dense_quality(arguments)]
    notes += [f.pop("unmeasured") for f in (first, second) if "unmeasured" in f]
    if arguments.json:
        print(json.dumps({"models": named, "notes": notes, "batch": arguments.batch}, indent=1))
    else:
        _show(figure_table(named, looked.task.metric), notes)
    return 0


def _short(path: str) -> str:
    return Path(path).name or path


def _at_length(config: RunConfig, tokens: int | None) -> RunConfig:
    if tokens is None:
        return config
    return configure({**config.model_dump(exclude_none=True), "length": tokens})


def _baseline(looked: Subject, path: str | None) -> Subject:
    if path is not None:
        given = {"plugin": looked.config.plugin} if looked.config.plugin else {}
        other, task = subject(path, keys=given), looked.config.task
        if other.config.task != task:
            raise ConfigError(
                f"baseline={path!r}: it is of task {other.config.task}, {looked.name} of {task}; "
                f"allowed: a model of task {task}"
            )
        return other
    return Subject(DENSE, dense_model(looked.config).eval(), looked.config)


def _figures(
    looked: Subject, config: RunConfig, arguments: Namespace, path: str | None, task: str | None
) -> Figures:
    found = figures_of(looked.model, config, looked.masks, looked.edits)
    if path is not None:
        found["bytes_on_disk"] = on_disk(Path(path))
    if arguments.memory:
        about = {
            "path": arguments.model if path is None else path,
            "task": arguments.task if path is None else task,
            "keys": given_keys(arguments) if path is None or task else {},
            "dense": path is None,
            "batch": arguments.batch,
            "changes": {"length": config.length},
        }
        found["peak_memory"] = peak_of(about)
    known = _from_summary(arguments.model if path is None else path, dense=path is None)
    if known is None and arguments.quality and path is not None:
        try:
            known = quality_of(looked)
        except FileNotFoundError as error:  # a model is weighed without the data it learned from
            found["unmeasured"] = f"The quality of {looked.name} was not measured: {error}"
    return {**found, "quality": known}


def on_disk(folder: Path) -> int | None:
    """Bytes of a model's weights where they lie; of a run's, the coded file."""
    files = [folder / CODED_NAME]
    if not files[0].is_file():
        files = [*folder.glob("*.safetensors"), *folder.glob("*.onnx*")]
    return sum(file.stat().st_size for file in files) or None


def _dense_quality(arguments: Namespace) -> list[str]:
    said = summary_in(Path(arguments.model))
    if arguments.baseline is not None or not said:
        return []
    if said["quality"].get(DENSE):
        return ["The dense model's quality is that of the run's dense baseline, at its end."]
    return ["The dense model's quality is what it was when pruning began."]


def _from_summary(path: str, *, dense: bool) -> dict[str, Any] | None:
    """What a run measured on its test split: of its result, or of its dense model."""
    told: dict[str, dict[str, Any] | None] = summary_in(Path(path)).get("quality", {})
    if dense:
        return told.get(DENSE) or told.get("dense_at_pruning")
    return told.get("final")


def _show(table: Table, notes: list[str]) -> None:
    screen = Screen(box=None, pad_edge=False)
    for column in table.columns:
        screen.add_column(column, justify="left" if column in table.words else "right")
    for row in table.rows:
        screen.add_row(*row)
    console = Console(highlight=False)
    console.print(screen)
    for note in notes:
        console.print(f"\n{note}", markup=False)
