"""What a federation gives away, measured by attacks: ``python simulations/privacy.py``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As a script this file's folder is on the path, the repository is not.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from fedprune.attacks.canary_report import canary_findings
from fedprune.attacks.image_report import closed_form_findings, search_findings
from fedprune.attacks.label_report import label_findings
from fedprune.attacks.membership_report import membership_study
from fedprune.attacks.page import Passage, write_findings
from fedprune.attacks.portrait_report import portrait_findings
from fedprune.attacks.text_report import text_findings
from fedprune.commands.targets import check_file
from fedprune.report.picture import write_plots
from fedprune.runtime.ending import BAD_INPUT, ended, report_error
from simulations.utility import utility_findings

PROGRAM = "privacy.py"

Tick = Callable[[], None]
Findings = tuple[list[Passage], dict[str, Any]]


@dataclass(frozen=True)
class Study:
    """What was asked for."""

    seeds: range  # 0 to one less than so many
    epsilons: tuple[float, ...]  # of the columns with noise, ascending
    steps: int  # of every search


@dataclass(frozen=True)
class Chapter:
    """One part of the page: a line about it, and what makes its sections and figures."""

    summary: str
    findings: Callable[[Study, Tick], Findings]


def _alone(found: tuple[Passage, dict[str, Any]]) -> Findings:
    return [found[0]], found[1]


PARTS: dict[str, Chapter] = {
    "inversion": Chapter(
        "one image from one client's message, in closed form",
        lambda s, tick: closed_form_findings(s.seeds, s.epsilons, tick),
    ),
    "search": Chapter(
        "one image by gradient matching, through convolutions",
        lambda s, tick: search_findings(s.seeds, s.epsilons, s.steps, tick),
    ),
    "labels": Chapter(
        "how often each label occurs in shards of 32 and 200",
        lambda s, tick: label_findings(s.seeds, s.epsilons, tick),
    ),
    "text": Chapter(
        "which characters a text holds, and their order (needs the plays)",
        lambda s, tick: text_findings(s.seeds, s.epsilons, s.steps, tick),
    ),
    "model": Chapter(
        "what the finished model shows of its classes, dense and pruned",
        lambda s, tick: portrait_findings(s.seeds, tick),
    ),
    "membership": Chapter(
        "who was trained on, of 32 models at each of four sparsities, whatever --seeds",
        lambda _, tick: _alone(membership_study(0, tick=tick)),
    ),
    "canary": Chapter(
        "what noise and clipping are caught losing, by 20 audits a row, whatever --seeds",
        lambda _, tick: _alone(canary_findings(range(20), 1e-5, tick)),
    ),
    "utility": Chapter(
        "quality against epsilon on digits: whole runs with noise on scores, or on everything",
        lambda s, tick: utility_findings("digits", s.seeds, s.epsilons, tick),
    ),
    "study": Chapter(
        "the same on the default task: 81 runs with three seeds and budgets, half an hour",
        lambda s, tick: utility_findings("shakespeare", s.seeds, s.epsilons, tick),
    ),
}

QUICK = tuple(name for name in PARTS if name != "study")

INTRODUCTION = (
    "Attacks on what this software really sends: each message comes out of the functions that "
    "answer questions in a run, encoded, decoded and checked. Models and data are small, the "
    "attacks are known ones, and better ones exist: a figure here is the least that leaks, never "
    "the most.",
    "Protections: plain is a client's message by itself; clipped is brought to norm 1; a sum is "
    "what a secure sum shows of several clients; an epsilon stands for the noise that gives it to "
    "this one release, delta 1e-5, against an observer who knows all other clients' messages. "
    "Pruning is in the tables as a condition, not as a protection.",
)

EPILOG = """\
examples:
  python simulations/privacy.py
  python simulations/privacy.py --parts inversion,labels --seeds 5 --epsilon 1,10,1000
  python simulations/privacy.py --parts search --steps 1000 --out runs/privacy-long
  python simulations/privacy.py --parts study --epsilon 1,4,10 --out runs/privacy-study

It writes page.html (tables and pictures), plots/ (the pictures), results.json (every trial), and
prints the tables.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(
        prog="privacy.py",
        description="Attack what clients release, plain and protected, and show what comes out.",
        epilog="parts:\n"
        + "\n".join(f"  {name:<12} {part.summary}" for name, part in PARTS.items())
        + f"\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = out.add_argument
    add(
        "--parts",
        default=",".join(QUICK),
        metavar="NAME,...",
        help="which (default: all but study)",
    )
    add("--seeds", type=int, default=3, metavar="N", help="repetitions with spread (default: 3)")
    add(
        "--epsilon",
        default="1,10,1000",
        metavar="X,...",
        help="epsilons of attacked releases, and of the runs in utility and study "
        "(default: 1,10,1000)",
    )
    add("--steps", type=int, default=120, metavar="N", help="of every search (default: 120)")
    add("--out", default="runs/privacy", metavar="DIR", help="where to write")
    return out


def study_of(given: argparse.Namespace) -> tuple[Study, list[str]]:
    """What was asked for and the parts of it, in the order of the page.

    Raises:
        ValueError: one line with the option, its value and what is allowed.
    """
    wanted = given.parts.split(",")
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        raise ValueError(f"parts={unknown[0]!r}: no such part; allowed: {', '.join(PARTS)}")
    for name in ("seeds", "steps"):
        if vars(given)[name] < 1:
            raise ValueError(f"{name}={vars(given)[name]}: too few; allowed: 1 or more")
    try:
        epsilons = tuple(sorted(float(x) for x in given.epsilon.split(",")))
    except ValueError:
        epsilons = ()
    if not epsilons or not 0.01 <= epsilons[0] <= epsilons[-1] <= 1e6:
        raise ValueError(f"epsilon={given.epsilon!r}: allowed: numbers from 0.01 to 1e6")
    parts = [name for name in PARTS if name in wanted]
    return Study(range(given.seeds), epsilons, given.steps), parts


def made(study: Study, parts: Sequence[str]) -> tuple[list[Passage], dict[str, Any]]:
    """The sections of all parts, and their figures by part; progress goes to standard error."""
    sections, figures = list[Passage](), dict[str, Any]()
    for name in parts:
        began, done = time.perf_counter(), 0

        def tick(name: str = name, began: float = began) -> None:
            nonlocal done
            done += 1
            passed = time.perf_counter() - began
            print(f"\r{name}: {done} done, {passed:.0f} s ", end="", file=sys.stderr, flush=True)

        found, figures[name] = PARTS[name].findings(study, tick)
        print(file=sys.stderr)
        sections += found
    return sections, figures


def printed(section: Passage) -> str:
    """A section's table as text."""
    if section.table is None:
        return ""
    rows = [section.table.columns, *section.table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([f"\n{section.title}", *(line.rstrip() for line in lines)])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; see `fedprune.runtime.ending` for what it gives back."""
    return ended(lambda: _main(sys.argv[1:] if arguments is None else arguments), PROGRAM)


def _main(arguments: list[str]) -> int:
    given = parser().parse_args(arguments)
    folder = Path(given.out)
    try:
        study, parts = study_of(given)
        folder.mkdir(parents=True, exist_ok=True)  # before an hour of work
        check_file("out", str(folder / "page.html"))
        sections, figures = made(study, parts)
    except ValueError as error:
        return report_error(PROGRAM, error, BAD_INPUT)
    except OSError as error:
        return report_error(
            PROGRAM, f"out={given.out!r}: {error}; allowed: a folder to write in", BAD_INPUT
        )
    command = shlex.join(["python", "simulations/privacy.py", *arguments])
    write_findings(folder / "page.html", "What leaks", INTRODUCTION, sections, command)
    write_plots(folder, {picture.name: picture for part in sections for picture in part.pictures})
    results = {"command": command, "epsilons": study.epsilons, "parts": figures}
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    for section in sections:
        print(printed(section))
    print(f"\npage      {folder / 'page.html'}\nfigures   {folder / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
