"""The `fedprune` command: runs on simulated clients, and what is done to a model outside of one."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from fedprune.commands import analyse, audit, export, measure, run
from fedprune.options.refusal import ConfigError
from fedprune.runtime.ending import BAD_INPUT, ended, report_error

PROGRAM = "fedprune"
_RUN = "run"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a disk says that takes no more."""


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        summary: one line about it.
        examples: lines of a shell that show what it is for.
        options: puts its arguments on a parser.
        run: does it and gives back the exit code; bad input is raised as an error of one line.
    """

    summary: str
    examples: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: dict[str, Command] = {
    "analyse": Command(analyse.SUMMARY, analyse.EXAMPLES, analyse.options, analyse.run),
    "measure": Command(measure.SUMMARY, measure.EXAMPLES, measure.options, measure.run),
    "audit": Command(audit.SUMMARY, audit.EXAMPLES, audit.options, audit.run),
    "export": Command(export.SUMMARY, export.EXAMPLES, export.options, export.run),
}
"""A new sub-command is a module in `fedprune.commands` and a line here."""


class _Parser(argparse.ArgumentParser):
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
    commands = out.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser(_RUN, help=run.SUMMARY, add_help=False)  # it reads its own options
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
        return run.main(given[1:], f"{PROGRAM} {_RUN}")
    return ended(lambda: _main(given), PROGRAM)


def script() -> None:
    """Run the command line of this process, and end it with its code."""
    if sys.argv[1:2] == [_RUN]:
        run.script(sys.argv[2:], f"{PROGRAM} {_RUN}")
    else:
        sys.exit(main())


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
