"""What ``fedprune run`` takes, and what can be refused before torch is there."""

from __future__ import annotations

import argparse
import functools
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from fedprune.config.allowed import allowed, check_built_in_names, check_keys, no_such_key
from fedprune.config.sections import AllOptions
from fedprune.options.conditions import in_words
from fedprune.options.name_table import NameTable
from fedprune.options.option import BY_TASK, declared
from fedprune.options.refusal import ConfigError, named, shown
from fedprune.options.values import as_text, parsed
from fedprune.runtime.ending import BAD_INPUT, ended, report_error

EXAMPLES = """\
examples:
  fedprune run --clients 20
  fedprune run --task digits --score magnitude --sparsity 0.9 --baselines dense,random
  fedprune run --config runs/one/config.toml --seed 1 --out runs/two
  fedprune run --resume runs/one
"""


_METHODS = NameTable("fedprune.methods.catalog", "METHODS")

SHOWN_FIRST = (
    *("task", "model", "data", "clients", "rounds", "score", "sparsity", "unit", "schedule"),
    *("seed", "engine", "out"),
)
"""The options that ``--help`` shows; ``--help-all`` shows all."""


class _Lines(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """A switch as its two names alone: that it may take true or false is for files' sake."""
        if isinstance(action, _Flag):
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """The first options, the ways to begin, and in which groups the others are."""
        groups = [g for g in self._action_groups if g.title and g._group_actions]
        first = [a for key in SHOWN_FIRST for a in self._actions if a.dest == key]
        text = self.formatter_class(prog=self.prog)
        text.add_usage(self.usage, [], [])
        text.add_text(self.description)
        for title, actions in (("options", first), ("to begin", groups[0]._group_actions)):
            text.start_section(title)
            text.add_arguments(actions)
            text.end_section()
        others = ", ".join(str(g.title) for g in groups[1:])
        text.add_text(f"--help-all has {len(self._actions)} options, in these groups: {others}.")
        text.add_text(self.epilog)
        return text.format_help()

    def error(self, message: str) -> NoReturn:
        """One line for what argparse cannot read: an option without its value, or a stray word."""
        about = re.match(r"argument (?:--no-[\w-]+/)?--([\w-]+)[^:]*: (.*)", message)
        key, reason = about.groups() if about else ("", message)
        field = AllOptions.model_fields.get(key.replace("-", "_"))
        takes = allowed(field) if field else "the options in --help-all"
        if pair := _TABLES.get(key.replace("-", "_")):
            takes = f"{' '.join(pair)}, or {'='.join(pair)},..."
        raise ConfigError(f"{f'{key}: ' if key else ''}{reason}; allowed: {takes}", key, takes)


@functools.cache
def run_parser(program: str = "run.py") -> argparse.ArgumentParser:
    """Options in the groups of the schema; only those given are in the result."""
    out = _Parser(
        prog=program,
        usage="%(prog)s [OPTION VALUE]...",
        description="Federated pruning of a model on clients simulated by Flower and Ray.",
        epilog=EXAMPLES,
        formatter_class=_Lines,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    # argparse takes "-1e-3" for an option, if it is not told that this is a number.
    out._negative_number_matcher = re.compile(r"^-\.?\d")
    add = out.add_argument
    add("-h", "--help", action="help", help="show the options that matter most")
    add("--help-all", action=_HelpAll, help="show every option, by group")
    add("--config", metavar="FILE", help="TOML file of options; the command line overrides it")
    add("--resume", metavar="DIR", help="continue the run in this folder")
    add(
        "--resume-anyway",
        action="store_true",
        help="continue although configuration, data, plug-in or versions have changed",
    )
    add(
        "--dry-run",
        action="store_true",
        help="estimate the run's bytes, operations, memory and time, without running it",
    )
    add(
        "--seeds",
        metavar="N-M",
        help="a run for each of these seeds, and one page that compares them",
    )
    add(
        "--list",
        metavar="TABLE",
        nargs="?",
        const="",
        help="print the names that options take, or those of one option: --list scores",
    )
    groups: dict[str, Any] = {}
    for key, field in AllOptions.model_fields.items():
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


def full_help(parser: argparse.ArgumentParser) -> str:
    """What ``--help-all`` prints: every option, by group."""
    return argparse.ArgumentParser.format_help(parser)


class _HelpAll(argparse.Action):
    """``--help-all``: print what argparse makes of all options."""

    def __init__(self, option_strings: list[str], dest: str, **rest: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **rest)

    def __call__(self, parser: Any, *_: Any) -> None:
        """Print and leave."""
        print(full_help(parser), end="")
        parser.exit()


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


class _Pairs(argparse.Action):
    """``--key NAME VALUE``, or ``--key NAME=VALUE,...`` as Flower's run config has it; repeated.

    A value of one name may have commas: ``--key NAME=1,2``.
    """

    def __init__(self, option_strings: list[str], dest: str, **rest: Any) -> None:
        super().__init__(option_strings, dest, nargs="+", **rest)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Note the pairs beside those that are there."""
        said = " ".join(values)
        pair = values if len(values) == 2 else said.split("=") if said.count("=") == 1 else None
        read = dict([pair]) if pair else parsed("", said, dict[str, Any])
        if not isinstance(read, dict):
            parser.error(f"argument {option}: {' '.join(values)!r} is no pair")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), **read})


def _kind(annotation: Any, key: str) -> dict[str, Any]:
    """How an option looks; every value is text here, which the schema reads and checks."""
    if annotation is bool:
        return {"action": _Flag}
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = typing.get_args(annotation) if union else (annotation,)
    if key in _TABLES:
        return {"action": _Pairs, "metavar": " ".join(_TABLES[key])}
    if key == "unit_shape":
        return {"metavar": "N,M"}
    lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if lists:
        return {"metavar": f"{_letter(typing.get_args(lists[0])) or 'NAME'},..."}
    names = [n for k in kinds if typing.get_origin(k) is typing.Literal for n in typing.get_args(k)]
    shown = "|".join(filter(None, [*names, _letter(kinds)]))
    return {"metavar": shown or (key.upper() if key in {"task", "score"} else "NAME")}


def _letter(kinds: Iterable[Any]) -> str:
    """What stands for a number of one of these types; "" where none is one."""
    return "N" if int in kinds else "X" if float in kinds else ""


def values_given(arguments: list[str], program: str) -> dict[str, Any]:
    """What a command line says, by key; values are text.

    Raises:
        ConfigError: an option that there is not, or one without its value.
        SystemExit: after --help.
    """
    known, rest = run_parser(program).parse_known_args(arguments)
    if rest:
        raise _stray(rest)
    given = vars(known)
    for key in _TABLES.keys() & given.keys():
        given[key] = {name: parsed("", value, float) for name, value in given[key].items()}
    return given


def told_at_once(arguments: list[str], program: str) -> int:
    """The code with which a command line ends that says what no option takes; 0: it may go on.

    Nothing is imported for it that takes long. What of several options contradicts each other is
    said later, and so is what needs a file or a plug-in.
    """
    return ended(lambda: _told_at_once(arguments, program), program)


def _told_at_once(arguments: list[str], program: str) -> int:
    fields = AllOptions.model_fields
    try:
        given = values_given(arguments, program)
        options = {k: parsed(k, v, fields[k].annotation) for k, v in given.items() if k in fields}
        if "resume" not in given and "list" not in given:
            check_keys(AllOptions, options)
        if not given.keys() & {"resume", "config", "plugin", "list"}:
            check_built_in_names(AllOptions, options)
            if "method" in options:
                named(("method", options["method"]), _METHODS.keys())
    except ValueError as error:
        return report_error(program, error, BAD_INPUT)
    return 0


def _stray(rest: list[str]) -> ConfigError:
    """The refusal of the first word that is no option and no option's value."""
    name, equals, value = rest[0].removeprefix("--").partition("=")
    if not rest[0].startswith("--"):
        takes = "the options in --help-all"
        return ConfigError(f"{shown(rest[0])}: not an option; allowed: {takes}", "", takes)
    value = value if equals else next((word for word in rest[1:] if word[:2] != "--"), "")
    return no_such_key(name, value, AllOptions.model_fields, dashed=True)
