"""The configuration that a command line asks for, new or resumed; and what ``--list`` prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fedprune.commands.run_options import values_given
from fedprune.config import RunConfig, given_in, overridden
from fedprune.config.privacy_matrix import matrix
from fedprune.config.rules import names_of
from fedprune.methods.catalog import check_method, methods_of
from fedprune.options.refusal import ConfigError, named
from fedprune.options.values import as_text
from fedprune.records.resumed import resumed_config, text_at
from fedprune.tasks.catalog import tasks_of


def run_asked_for(
    arguments: list[str], program: str = "run.py"
) -> tuple[RunConfig, Path | None, bool]:
    """The configuration to run, the folder to resume or None, and whether to do so anyway.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
        SystemExit: after --help and --list.
    """
    given = values_given(arguments, program)
    if "list" in given:
        print(listing(given.get("plugin", ""), given["list"]))
        raise SystemExit(0)
    file, resume = given.pop("config", None), given.pop("resume", None)
    anyway = given.pop("resume_anyway", False)
    if given.pop("dry_run", False) and resume is not None:
        raise ConfigError("dry-run: not beside --resume; allowed: one of both")
    given.pop("seeds", None)  # read by `fedprune.commands.seeds`, whose runs have one each
    if resume is not None:
        return resumed_config(Path(resume), given, file, anyway=anyway), Path(resume), anyway
    if anyway:
        raise ConfigError("resume-anyway: nothing is resumed; allowed: beside --resume DIR")
    plugin = given.get("plugin", "")
    base = given_in(text_at(Path(file), "config"), plugin, file) if file is not None else {}
    config, left_out = overridden(base, given)
    check_method(config)
    for line in left_out:
        print(f"run.py: {file}: {line}", file=sys.stderr)
    return config, None, False


def listing(plugin: str, wanted: str = "") -> str:
    """Every name that an option takes, with a line about each, from the tables themselves.

    `wanted`: the option whose table is wanted, in the singular or the plural; "": all, and the
    rules for what may stand beside each other.
    """
    tables = {"model": _models(plugin), "method": _methods(plugin)}
    for key, table in names_of(plugin).items():
        tables[key] = {name: _about(name, value) for name, value in table.items()}
    blocks = {key.replace("_", "-"): _block(key, lines) for key, lines in tables.items()}
    if wanted:
        found = next((k for k in blocks if wanted in (k, f"{k}s")), None)
        named(("list", found or wanted), blocks, "table")
        return blocks[found or wanted]
    rules = [
        "\n".join([f"beside --{name}", *(f"  {line}" for line in lines)])
        for name, lines in matrix().items()
    ]
    return "\n\n".join([*blocks.values(), *rules])


def _block(key: str, lines: dict[str, str]) -> str:
    told = (f"  {name:<24} {text}" for name, text in lines.items())
    return "\n".join([f"--{key.replace('_', '-')}", *told])


def _about(name: str, value: Any) -> str:
    """A line about what a table has under a name: its summary and source, or what it is."""
    if summary := getattr(value, "summary", ""):
        source = getattr(value, "source", "")
        return f"{summary} [{source}]" if source else str(summary)
    if callable(value):
        return str(value.__doc__ or name).splitlines()[0].rstrip(".")
    return str(value).removeprefix("torch.")


def _methods(plugin: str) -> dict[str, str]:
    """Every method, and below it what ``--method-options`` takes with it."""
    lines: dict[str, str] = {}
    for name, method in methods_of(plugin).items():
        lines[name] = f"{method.summary} [{method.source}]"
        for key, field in method.options.model_fields.items():
            default = as_text(field.default)
            told = "none" if default == "" else default
            lines[f"  {name}: {key}"] = f"{field.description} (default: {told})"
    return lines


def _models(plugin: str) -> dict[str, str]:
    """Every model that some task names, and the tasks that do."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, task in tasks_of(plugin).items():
        for model, summary in task.models.items():
            found.setdefault(model, (summary, []))[1].append(name)
    lines = {m: f"{summary} ({', '.join(names)})" for m, (summary, names) in found.items()}
    paths = ", ".join(name for name, task in tasks_of(plugin).items() if task.paths)
    return lines | {"PATH": f"a folder or hub id that transformers loads ({paths})"}
