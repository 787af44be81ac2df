"""``fedprune analyse``: what a model says twice, by its weights and by what its clients see."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Screen

from fedprune.commands.inputs import inputs_of_clients, runner
from fedprune.commands.subject import Subject, chosen_subject
from fedprune.commands.targets import check_file
from fedprune.export.quantise import is_quantised
from fedprune.options.refusal import ConfigError
from fedprune.records.figures import example_of
from fedprune.redundancy.analysis import Finding, Known, analysed
from fedprune.runtime.files import write_atomically
from fedprune.structure.layout import layout_of
from fedprune.tasks.task import output_of
from fedprune.tensors.models import state_of

_MOST = 12  # Rows of a table on the screen; all of them are in the JSON file


def run(arguments: Namespace) -> int:
    """Analyse and print."""
    if arguments.json is not None:
        check_file("json", arguments.json)
    looked = chosen_subject(arguments)
    if is_quantised(looked.model):
        raise ConfigError(f"model={looked.name!r}: quantised; allowed: the run that it is from")
    found = analysed(known_of(looked, inputs=arguments.inputs), arguments.energy, arguments.similar)
    if arguments.json:
        write_atomically(Path(arguments.json), json.dumps(found, indent=1).encode())
    console = Console(highlight=False)
    for title, table in tables(found, arguments.energy):
        console.print(f"\n[bold]{title}[/bold]")
        console.print(table)
    if arguments.json:
        console.print(f"\nall of it: {arguments.json}", markup=False)
    return 0


def known_of(looked: Subject, *, inputs: bool) -> Known:
    """What is analysed of a subject; with what its clients see, or by its weights alone."""
    c, model = looked.config, looked.model
    output = output_of(looked.task, model)
    layout = layout_of(model, output=output)
    forward = example_of(model, c)
    return Known(
        model,
        layout,
        state_of(model),
        {n: m for n, m in (looked.masks or {}).items() if n in layout.prunable},
        inputs_of_clients(looked, layout) if inputs else None,
        None if forward is None else runner(forward),
    )


def tables(found: dict[str, list[Finding]], energy: float) -> list[tuple[str, Screen]]:
    """What was found as titles and tables for the screen; nothing about what was not."""
    made = [(f"Spectra, ranks for {energy:.4g} of the energy", _matrices(found["matrices"]))]
    for key, (title, columns) in _TABLES.items():
        rows = [[_said(row[column]) for column in columns] for row in found.get(key, [])]
        if rows:
            count = f" ({len(rows)}, {_MOST} shown)" if len(rows) > _MOST else f" ({len(rows)})"
            made.append((title + count, _screen(columns, rows[:_MOST])))
    missing = [title.lower() for key, (title, _) in _TABLES.items() if not found.get(key)]
    if missing:
        made.append(("Not found", _screen(["what"], [[title] for title in missing])))
    return made


_TABLES: dict[str, tuple[str, Sequence[str]]] = {
    "dead": ("Dead units", ("path", "why", "units")),
    "similar": ("Similar units", ("kind", "path", "left", "right", "by", "cosine")),
    "layers": ("Similar layers", ("path", "other", "by", "cosine")),
    "equal": ("Equal matrices, which can be shared", ("name", "like")),
    "heads": ("Heads that merge exactly", ("path", "pairs")),
    "chains": ("Linear maps without anything between", ("first", "second", "now", "product")),
    "norms": ("Norms that fold into what reads them", ("norm", "readers", "parameters")),
}


def _matrices(rows: list[Finding]) -> Screen:
    columns = ["matrix", "shape", "kept", "effective rank", "rank", "pays up to"]
    with_inputs = any("rank_inputs" in row for row in rows)
    if with_inputs:
        columns[4:5] = ["rank", "effective, inputs", "rank, inputs"]
    told = []
    for row in rows:
        beside = [row.get("effective_rank_inputs"), row.get("rank_inputs")] if with_inputs else []
        shape = "x".join(map(str, row["shape"]))
        cells = [row["name"], shape, row["kept"], row["effective_rank"], row["rank"], *beside]
        told.append([_said(cell) for cell in (*cells, row["most"])])
    return _screen(columns, told)


def _screen(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Screen:
    screen = Screen(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        screen.add_column(column, overflow="fold", justify="right" if _number(rows, i) else "left")
    for row in rows:
        screen.add_row(*row)
    return screen


def _number(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column][:1] in set("-0123456789") for row in rows)


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(
            "-".join(map(str, each)) if isinstance(each, list | tuple) else str(each)
            for each in value
        )
    return "-" if value is None else str(value)
