"""The `fedprune` command: runs on simulated clients, and what is done to a model outside of one."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from fedprune.commands.catalog import COMMANDS
from fedprune.commands.run_options import told_at_once
from fedprune.options.refusal import ConfigError, named
from fedprune.runtime.ending import BAD_INPUT, ended, report_error
from fedprune.runtime.version import RELEASE

PROGRAM = "fedprune"
_RUN, _SUMMARY = "run", "Prunes a model on simulated clients."

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # What a disk says that takes no more


class _Parser(argparse.ArgumentParser):
    """Refuses as options of a run are refused: by the command's own name, with what is nearest."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            options = [name for action in self._actions for name in action.option_strings]
            near = get_close_matches(rest[0].partition("=")[0], options, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"{rest[0]}: no such option{hint}; allowed: those in {self.prog} -h")
        return known, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            key = action.dest.lower().replace("_", "-")
            noun = "choice" if action.option_strings else "command"
            named((key, value), action.choices, noun)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (all options are in {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The command line, with one sub-parser for each command."""
    out = _Parser(
        prog=PROGRAM,
        description="Prunes models on simulated clients, measures and exports them. "
        "A command's own --help has more.",
        allow_abbrev=False,
    )
    out.add_argument("--version", action="version", version=f"%(prog)s {RELEASE}")
    commands = out.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser(_RUN, help=_SUMMARY, add_help=False)  # it reads its own options
    for name, command in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"examples:\n{command.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.options(own)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; see `fedprune.runtime.ending` for what it gives back."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == [_RUN]:
        return run(given[1:], f"{PROGRAM} {_RUN}")
    return ended(lambda: _main(given), PROGRAM)


def run(arguments: list[str], program: str) -> int:
    """``fedprune run``: see `fedprune.commands.run.main`, which is imported for what may run."""
    if code := told_at_once(arguments, program):
        return code
    from fedprune.commands import run as command

    return command.main(arguments, program)


def script() -> None:
    """Run the command line of this process, and end it with its code."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        from fedprune.commands.completion import complete

        complete()
    if sys.argv[1:2] == [_RUN]:
        run_script(sys.argv[2:], f"{PROGRAM} {_RUN}")
    else:
        sys.exit(main())


def run_script(arguments: list[str], program: str) -> None:
    """``fedprune run`` as this process, which ends with its code."""
    if code := told_at_once(arguments, program):
        sys.exit(code)
    from fedprune.commands import run as command

    command.script(arguments, program)


def _main(arguments: list[str]) -> int:
    try:
        given = parser().parse_args(arguments)
        return COMMANDS[given.command].run(given)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in FULL:
            return report_error(PROGRAM, error, BAD_INPUT)
        return report_error(
            PROGRAM, f"out: {error}; allowed: a folder on a disk with room to write"
        )
    except (ConfigError, ImportError, ValueError) as error:
        return report_error(PROGRAM, error, BAD_INPUT)
