"""The command line, made from the one schema in `fedprune.config`."""

from __future__ import annotations

import argparse
import sys
import types
import typing
from pathlib import Path
from typing import Any, NoReturn

from fedprune.config import BY_TASK, ConfigError, RunConfig, configure, from_toml
from fedprune.learning.training import OPTIMIZERS
from fedprune.plugins import scores_of, tasks_of
from fedprune.pruning.schedules import SCHEDULES
from fedprune.pruning.selection import SCOPES
from fedprune.report.folder import CONFIG_NAME
from fedprune.rules import BASELINES
from fedprune.tasks.splits import SPLITS

RESUMABLE = {"engine", "workers", "gpus", "ray_address", "timeout", "verbose"}
"""Keys that may change on --resume: no bit of a result depends on them."""

EXAMPLES = """\
examples:
  python simulations/run.py --clients 20
  python simulations/run.py --task digits --score magnitude --sparsity 0.9 --baselines dense,random
  python simulations/run.py --config runs/one/config.toml --seed 1 --out runs/two
  python simulations/run.py --resume runs/one
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (all options are in --help)")


def parser() -> argparse.ArgumentParser:
    """Options in the groups of the schema; only those given are in the result."""
    out = _Parser(
        prog="run.py",
        description="Federated pruning of a model on clients simulated by Flower and Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    out.add_argument("--config", metavar="FILE", help="TOML file of options; the command line wins")
    out.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    out.add_argument("--list", action="store_true", help="print every task, score, split and more")
    groups: dict[str, Any] = {}
    for key, field in RunConfig.model_fields.items():
        extra = typing.cast(dict[str, Any], field.json_schema_extra)
        name = str(extra["group"])
        group = (
            groups.setdefault(name, out.add_argument_group(name))
            if name not in groups
            else groups[name]
        )
        option = f"--{key.replace('_', '-')}"
        group.add_argument(option, help=_help(field), **_kind(field.annotation, key))
    return out


def _help(field: Any) -> str:
    text = str(field.description).replace("%", "%%")
    if field.default in ("", None, ()) or isinstance(field.default, bool):
        return text
    default = BY_TASK if field.default == BY_TASK else field.default
    return f"{text} (default: {default})"


def _kind(annotation: Any, key: str) -> dict[str, Any]:
    """How argparse reads a value; pydantic checks it afterwards."""
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(annotation) is tuple:
        return {"type": _names, "metavar": "NAME,..."}
    kinds = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    if int in kinds:
        return {"metavar": "N", "type": _number}
    if float in kinds:
        return {"metavar": "X", "type": _number}
    return {"metavar": key.upper() if key in {"task", "score"} else "NAME"}


def _number(text: str) -> int | float | str:
    """A number where it is one; what is not, the schema refuses with the key's name."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def chosen(arguments: list[str]) -> tuple[RunConfig, Path | None]:
    """The configuration to run, and the folder to resume or None.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
        SystemExit: after --help and --list.
    """
    given = vars(parser().parse_args(arguments))
    if given.pop("list", False):
        print(listing(given.get("plugin", "")))
        raise SystemExit(0)
    file, resume = given.pop("config", None), given.pop("resume", None)
    if resume is not None:
        return _resumed(Path(resume), file, given), Path(resume)
    base = _read(Path(file), "config") if file is not None else {}
    return configure(_without_rivals(_flat(base), given) | given), None


def _without_rivals(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The file's keys, less those that nothing reads any more beside what the command line says.

    A resolved file holds all of them, and an option cannot be unset on the command line.
    """
    gone: set[str] = set()
    if given.get("split", "dirichlet") != "dirichlet":
        gone |= {"alpha"}
    if given.get("optimizer", "sgd") != "sgd":
        gone |= {"momentum"}
    if given.get("local_epochs"):
        gone |= {"local_steps"}
    if given.get("local_steps"):
        gone |= {"local_epochs"}
    if "threshold" in given or ("sparsity" in given and "threshold" in base):
        gone |= {"threshold", "sparsity", "schedule", "end"}
    before, after = base.get("schedule"), given.get("schedule")
    if after and after != before and "one-shot" in (before, after):
        gone |= {"end"}
    return {key: value for key, value in base.items() if key not in gone}


def _resumed(folder: Path, file: str | None, given: dict[str, Any]) -> RunConfig:
    fixed = sorted(given.keys() - RESUMABLE)
    if file is not None or fixed:
        key = "config" if file is not None else fixed[0].replace("_", "-")
        allowed = ", ".join(sorted(k.replace("_", "-") for k in RESUMABLE))
        raise ConfigError(f"{key}: cannot change on --resume; allowed: {allowed}")
    return configure(_flat(_read(folder / CONFIG_NAME, "resume")) | given)


def _read(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{key}={str(path)!r}: no such file; allowed: a TOML file of options")
    try:
        return from_toml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}={str(path)!r}: {error}; allowed: UTF-8") from None


def _flat(given: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in given.items()}


def listing(plugin: str) -> str:
    """Every name that an option takes, with a line about each, from the tables themselves."""
    tables: dict[str, dict[str, str]] = {
        "task": {name: task.summary for name, task in tasks_of(plugin).items()},
        "split": SPLITS,
        "score": {n: f"{s.summary} [{s.source}]" for n, s in scores_of(plugin).items()},
        "scope": {name: scope.summary for name, scope in SCOPES.items()},
        "schedule": {name: schedule.summary for name, schedule in SCHEDULES.items()},
        "optimizer": {name: f"torch.optim, {name}" for name in OPTIMIZERS},
        "baselines": BASELINES,
    }
    blocks = [
        "\n".join([f"--{option}", *(f"  {name:<24} {text}" for name, text in table.items())])
        for option, table in tables.items()
    ]
    return "\n\n".join(blocks)


def main_error(error: Exception) -> int:
    """Print one line and give back the exit code of bad input."""
    print(f"run.py: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
