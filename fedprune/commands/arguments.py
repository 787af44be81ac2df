"""The command line, made from the one schema in `fedprune.config`."""

from __future__ import annotations

import argparse
import functools
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from fedprune.config import (
    BY_TASK,
    RunConfig,
    configure,
    from_toml,
    given_in,
    overridden,
    recorded,
)
from fedprune.config.allowed import allowed, no_such_key
from fedprune.config.privacy_matrix import matrix
from fedprune.config.rules import names_of
from fedprune.methods.catalog import check_method, methods_of
from fedprune.options.conditions import in_words
from fedprune.options.refusal import ConfigError, shown
from fedprune.options.section import declared
from fedprune.options.values import as_text, parsed
from fedprune.records.folder import CONFIG_NAME
from fedprune.tasks.catalog import tasks_of

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
        """One line for what argparse cannot read: an option without its value, or a stray word."""
        about = re.match(r"argument (?:--no-[\w-]+/)?--([\w-]+)[^:]*: (.*)", message)
        key, reason = about.groups() if about else ("", message)
        field = RunConfig.model_fields.get(key.replace("-", "_"))
        takes = allowed(key.replace("-", "_"), field) if field else "the options in --help"
        raise ConfigError(f"{f'{key}: ' if key else ''}{reason}; allowed: {takes}", key, takes)


@functools.cache
def run_parser(program: str = "run.py") -> argparse.ArgumentParser:
    """Options in the groups of the schema; only those given are in the result."""
    out = _Parser(
        prog=program,
        description="Federated pruning of a model on clients simulated by Flower and Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    # argparse takes "-1e-3" for an option, if it is not told that this is a number.
    out._negative_number_matcher = re.compile(r"^-\.?\d")
    out.add_argument("--config", metavar="FILE", help="TOML file of options; the command line wins")
    out.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    out.add_argument(
        "--resume-anyway",
        action="store_true",
        help="go on although configuration, data, plug-in or versions are not as they were",
    )
    out.add_argument("--list", action="store_true", help="print every task, score, split and more")
    groups: dict[str, Any] = {}
    for key, field in RunConfig.model_fields.items():
        name = declared(field).group
        group = groups[name] = groups.get(name) or out.add_argument_group(name)
        option = f"--{key.replace('_', '-')}"
        group.add_argument(option, help=_help(field), **_kind(field.annotation, key))
    return out


def _help(field: FieldInfo) -> str:
    """What an option is, beside what it is read, whether it takes a name, and its default."""
    text, says = str(field.description), declared(field)
    default = (field.default is not None and not says.derived) or field.default == BY_TASK
    plain = default and field.default not in ("", (), {}) and not isinstance(field.default, bool)
    notes = [
        f"with {in_words(says.when)}" if in_words(says.when) else "",
        "see --list" if says.names is not None else "",
        f"default: {as_text(field.default)}" if plain else "",
    ]
    told = "; ".join(filter(None, notes))
    if told and text.endswith(")"):
        return f"{text[:-1]}; {told})".replace("%", "%%")
    return (f"{text} ({told})" if told else text).replace("%", "%%")


_TABLES = {
    "layers": ("PATTERN", "DENSITY"),
    "ranges": ("PATTERN", "LARGEST"),
    "method_options": ("NAME", "VALUE"),
}
"""Options that are given once for each pattern or name, with what goes with it."""


class _Flag(argparse.Action):
    """``--key``, ``--no-key``, or ``--key true`` and ``--key false``."""

    def __init__(self, option_strings: list[str], dest: str, **rest: Any) -> None:
        names = [*option_strings, f"--no-{option_strings[0][2:]}"]
        super().__init__(names, dest, nargs="?", metavar="true|false", **rest)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Note the value; pydantic checks it afterwards."""
        if not str(option).startswith("--no-"):
            setattr(namespace, self.dest, "true" if values is None else values)
        elif values is None:
            setattr(namespace, self.dest, "false")
        else:
            parser.error(f"{option}: takes no value")


def _kind(annotation: Any, key: str) -> dict[str, Any]:
    """How an option looks; every value is text here, which the schema reads and checks."""
    if annotation is bool:
        return {"action": _Flag}
    union = isinstance(annotation, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    if key in _TABLES:
        return {"action": "append", "nargs": 2, "metavar": _TABLES[key]}
    if key in {"unit_shape", "blend_grid"}:
        return {"metavar": "N,M" if key == "unit_shape" else "X,..."}
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return {"metavar": "NAME,..."}
    if int in kinds or float in kinds:
        return {"metavar": "N" if int in kinds else "X"}
    if typing.get_origin(annotation) is typing.Literal:
        return {"metavar": "|".join(typing.get_args(annotation))}
    return {"metavar": key.upper() if key in {"task", "score"} else "NAME"}


def run_asked_for(
    arguments: list[str], program: str = "run.py"
) -> tuple[RunConfig, Path | None, bool]:
    """The configuration to run, the folder to resume or None, and whether to do so anyway.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
        SystemExit: after --help and --list.
    """
    known, rest = run_parser(program).parse_known_args(arguments)
    if rest:
        raise _stray(rest)
    given = vars(known)
    if given.pop("list", False):
        print(listing(given.get("plugin", "")))
        raise SystemExit(0)
    for key in _TABLES.keys() & given.keys():
        given[key] = {name: parsed("", value, float) for name, value in given[key]}
    file, resume = given.pop("config", None), given.pop("resume", None)
    anyway = given.pop("resume_anyway", False)
    if resume is not None:
        return _resumed(Path(resume), file, given, anyway=anyway), Path(resume), anyway
    if anyway:
        raise ConfigError("resume-anyway: nothing is resumed; allowed: beside --resume DIR")
    plugin = given.get("plugin", "")
    base = given_in(_text(Path(file), "config"), plugin, file) if file is not None else {}
    config, left_out = overridden(base, given)
    check_method(config)
    for line in left_out:
        print(f"run.py: {file}: {line}", file=sys.stderr)
    return config, None, False


def _stray(rest: list[str]) -> ConfigError:
    """The refusal of the first word that is no option and no option's value."""
    name, equals, value = rest[0].removeprefix("--").partition("=")
    if not rest[0].startswith("--"):
        takes = "the options in --help"
        return ConfigError(f"{shown(rest[0])}: not an option; allowed: {takes}", "", takes)
    value = value if equals else next((word for word in rest[1:] if word[:2] != "--"), "")
    refusal = no_such_key(name, value, RunConfig.model_fields)
    return ConfigError(str(refusal), refusal.key, refusal.allowed)


def _resumed(folder: Path, file: str | None, given: dict[str, Any], *, anyway: bool) -> RunConfig:
    """The configuration of the run in a folder, which must be the one that ran.

    Raises:
        ConfigError: another is asked for, or something follows otherwise than when it began.
    """
    fixed = sorted(given.keys() - RESUMABLE - {"plugin"})
    if file is not None or fixed:
        key = "config" if file is not None else fixed[0].replace("_", "-")
        allowed = ", ".join(sorted(k.replace("_", "-") for k in RESUMABLE))
        raise ConfigError(f"{key}: cannot change on --resume; allowed: {allowed}")
    text, plugin = _text(folder / CONFIG_NAME, "resume"), given.pop("plugin", "")
    before = recorded(text, plugin, folder / CONFIG_NAME)
    config = configure({**from_toml(text), **({"plugin": plugin} if plugin else {})})
    for key, value in before:
        if (now := vars(config)[key]) != value and not anyway:
            raise ConfigError(
                f"{key.replace('_', '-')}={now!r}: follows from what {folder / CONFIG_NAME} gives, "
                f"and was {value!r} when the run began; allowed: the file as the run wrote it"
            )
    return config.model_copy(update=given)


def _text(path: Path, key: str) -> str:
    if not path.is_file():
        raise ConfigError(f"{key}={str(path)!r}: no such file; allowed: a TOML file of options")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{key}={str(path)!r}: {error.strerror}; allowed: a readable file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}={str(path)!r}: {error}; allowed: UTF-8") from None


def listing(plugin: str) -> str:
    """Every name that an option takes, with a line about each, from the tables themselves."""
    tables = {"model": _models(plugin), "method": _methods(plugin)}
    for key, table in names_of(plugin).items():
        tables[key] = {name: _about(name, value) for name, value in table.items()}
    blocks = [
        "\n".join(
            [f"--{key.replace('_', '-')}", *(f"  {n:<24} {text}" for n, text in lines.items())]
        )
        for key, lines in tables.items()
    ]
    rules = [
        "\n".join([f"beside --{name}", *(f"  {line}" for line in lines)])
        for name, lines in matrix().items()
    ]
    return "\n\n".join([*blocks, *rules])


def _about(name: str, value: Any) -> str:
    """A line about what a table has under a name: its summary and source, or what it is."""
    if summary := getattr(value, "summary", ""):
        source = getattr(value, "source", "")
        return f"{summary} [{source}]" if source else str(summary)
    if callable(value):
        return f"torch.optim, {name}"
    return str(value).removeprefix("torch.")


def _methods(plugin: str) -> dict[str, str]:
    """Every method, and below it what ``--method-options`` takes with it."""
    lines: dict[str, str] = {}
    for name, method in methods_of(plugin).items():
        lines[name] = f"{method.summary} [{method.source}]"
        for key, field in method.options.model_fields.items():
            lines[f"  {name}: {key}"] = f"{field.description} (default: {field.default})"
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
