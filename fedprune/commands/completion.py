"""What a shell offers after a tab, through argcomplete: options, and the names that they take.

``eval "$(register-python-argcomplete fedprune)"`` in a shell's start-up file turns it on. Nothing
here is imported for any other call.
"""

from __future__ import annotations

import typing
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import argcomplete
from pydantic.fields import FieldInfo

from fedprune.commands.main import PROGRAM, parser
from fedprune.commands.run_options import run_parser
from fedprune.config.sections import AllOptions
from fedprune.options.option import declared


def complete(**how: Any) -> None:
    """Answer the shell, and end the process; see `argcomplete.autocomplete` for `how`."""
    argcomplete.autocomplete(completing_parser(), **how)


def completing_parser() -> ArgumentParser:
    """The whole command line, ``run`` included, with the names that options take."""
    out, own = parser(), run_parser(f"{PROGRAM} run")
    for action in own._actions:
        if names := names_taken(AllOptions.model_fields.get(action.dest)):
            _offer(action, names)
    commands = next(a for a in out._actions if isinstance(a.choices, dict))
    typing.cast(dict[str, ArgumentParser], commands.choices)["run"] = own
    return out


def names_taken(field: FieldInfo | None) -> Sequence[str]:
    """The names that an option takes, without a plug-in's; none where it takes other values."""
    if field is None:
        return ()
    if (table := declared(field).names) is not None:
        return tuple(table.keys())
    if field.annotation is bool:
        return ("true", "false")
    kinds = [field.annotation, *typing.get_args(field.annotation)]
    literal = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
    return tuple(str(name) for kind in literal for name in typing.get_args(kind))


def _offer(action: Action, names: Sequence[str]) -> None:
    """Let argcomplete offer names for an option; in a list, for the last one of it."""
    lists = str(action.metavar).endswith(",...")
    typing.cast(Any, action).completer = _of_a_list(names) if lists else (lambda **_: names)


def _of_a_list(names: Sequence[str]) -> Callable[..., Iterable[str]]:
    def offered(prefix: str, **_: Any) -> Iterable[str]:
        before, comma, _last = prefix.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name not in before.split(",")]

    return offered
