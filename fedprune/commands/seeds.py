"""``fedprune run --seeds``: the same run once for each seed, as a study."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedprune.commands.arguments import run_asked_for
from fedprune.commands.run_options import values_given
from fedprune.commands.study import played
from fedprune.options.refusal import ConfigError
from fedprune.runtime.ending import BAD_INPUT, report_error
from fedprune.study.design import SEED, Design, design_of

_MOST = 1000


def seeds_in(text: str) -> list[int]:
    """Seeds as ``0-4`` or ``0,3,7``, or both."""
    out = list[int]()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"seeds={text!r}: not seeds; allowed: 0-4, or 0,3,7")
        out += range(int(first), int(last or first) + 1)[: _MOST + 1]
    if not 0 < len(out) == len(set(out)) <= _MOST:
        raise ConfigError(f"seeds={text!r}: {len(out)}, not all different; allowed: 1 to {_MOST}")
    return out


def run_seeds(arguments: list[str], program: str) -> int:
    """Play a run for each seed and write the page about them; gives back the exit code."""
    try:
        design, out = design_asked_for(arguments, program)
        return played(design, out, shlex.join([program, *arguments]))
    except (ConfigError, ImportError, OSError, ValueError) as error:
        return report_error(program, error, BAD_INPUT)


def design_asked_for(arguments: list[str], program: str) -> tuple[Design, Path]:
    """The runs that a command line with ``--seeds`` asks for, and where they go."""
    given = values_given(arguments, program)
    seeds = seeds_in(given["seeds"])
    for key in ("resume", "resume_anyway", "list", "dry_run", SEED):
        if key in given:
            raise ConfigError(f"{key.replace('_', '-')}: not beside --seeds; allowed: one of both")
    if "out" not in given:
        raise ConfigError("out: --seeds writes a run for each of them; allowed: --out DIR")
    config, _, _ = run_asked_for(arguments, program)
    base = {key: value for key, value in config.given.items() if key not in (SEED, "out")}
    out = Path(given["out"])
    return design_of({"base": base, "grid": {SEED: seeds}}, out.name), out
