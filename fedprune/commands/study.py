"""``fedprune study``: a run for each combination of values, and one page about all of them."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path

from fedprune.commands.targets import check_file
from fedprune.options.refusal import ConfigError, counted
from fedprune.records.folder import CONFIG_NAME
from fedprune.report.reading import SPACE, duration, metric_text, worded
from fedprune.runtime.ending import FAILED, resumable
from fedprune.study.design import COMPARED_OVER, Design, read_design
from fedprune.study.outcomes import RESULTS_NAME, outcome_of
from fedprune.study.page import STUDY_PAGE_NAME, write_study
from fedprune.study.pictures import Collected
from fedprune.study.playing import CellEnded, place_at, play


def run(arguments: Namespace) -> int:
    """Play what is not there yet, and write the page; 1 where a run is not what was asked."""
    design = read_design(Path(arguments.file))
    if arguments.dry_run:
        print("\n".join(cell.name for cell in design.cells))
        return 0
    command = ["fedprune", "study", arguments.file, "--out", arguments.out]
    out, address = Path(arguments.out), arguments.ray_address
    if address:  # a node may not have the folder that the command is given in
        command, out = [*command, "--ray-address", address], out.absolute()
    return played(design, out, shlex.join(command), arguments.jobs, address)


def played(
    design: Design, out: Path, command: str, jobs: int | None = None, address: str = ""
) -> int:
    """Play the cells of a study that are not there yet, and write the page about all.

    `jobs`: runs at once; None: one for each processor. `address`: of the Ray cluster whose nodes
    play them; "": this machine does.

    Returns:
        The exit code: 0, or 1 where a run has no result.

    Raises:
        KeyboardInterrupt: it was interrupted; the page is about what was there.
        ValueError: nothing can be written there, or the cluster cannot play them.
    """
    check_out(out)
    with resumable(f"to go on: {command}"):
        try:
            with place_at(address, out, design.cells) as place:
                at_once = jobs or place.jobs
                _begin(design, out, f"{at_once} at once{place.told}")
                play(design.cells, out, place, at_once, lambda told: _say(told, design, out))
        except KeyboardInterrupt:
            _written(design, out, command)
            raise
    return _written(design, out, command)


def _begin(design: Design, out: Path, how: str) -> None:
    print(f"fedprune study  {design.title}: {counted(len(design.cells), 'run')}, {how}")
    print(f"  compared    {design.factors.compared}, of {', '.join(design.factors.names)}")
    for name in design.usual:
        values = ", ".join(map(str, COMPARED_OVER[name]))
        print(f"  {name:<11} {values}: the file says nothing of it ({name} in [base] is for all)")
    print(f"  results     {out}", flush=True)


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be written to, before hours of work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={str(out)!r}: {error.strerror}; allowed: a folder") from None
    if (out / CONFIG_NAME).exists():
        raise ConfigError(f"out={str(out)!r}: holds a run; allowed: another folder")
    check_file("out", str(out / STUDY_PAGE_NAME))


def _written(design: Design, out: Path, command: str) -> int:
    outcomes = [outcome_of(cell, out) for cell in design.cells]
    page = write_study(out, Collected(design.title, design.factors, outcomes, command))
    print(f"\nresults   {out / RESULTS_NAME}\ntables    {out / 'tables'}\npage      {page}")
    missing = [outcome for outcome in outcomes if not outcome.counts]
    for outcome in missing:
        print(f"no result {outcome.name}: {outcome.reason}")
    return FAILED if missing else 0


def _say(told: CellEnded, design: Design, out: Path) -> None:
    count = f"[{told.done:>{len(str(len(design.cells)))}}/{len(design.cells)}]"
    labels = ", ".join(told.cell.labels.values())
    outcome = outcome_of(told.cell, out)
    if not outcome.counts:
        came = f"failed: {told.error or outcome.reason}"
    else:
        value = metric_text(outcome.metric, outcome.test(outcome.metric))
        came = f"{worded(outcome.metric)} {value}"
    took = duration(told.seconds) if told.seconds else "there already"
    left = "" if told.left is None else f", about {duration(told.left)} left"
    print(f"{count} {labels}: {came}, {took}{left}".replace(SPACE, " "), flush=True)
