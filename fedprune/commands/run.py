"""Federated pruning on simulated clients: ``fedprune run``, ``python simulations/run.py``."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import nn

from fedprune.adapters.targets import require_peft
from fedprune.client.footprint import Footprint, footprint_of
from fedprune.client.host import Host, build_host, labels_of
from fedprune.client.memory import in_run
from fedprune.commands.arguments import run_asked_for
from fedprune.config import RunConfig, to_toml, with_values
from fedprune.engines.choosing import Choice, chosen_engine
from fedprune.engines.inline import inline_port
from fedprune.engines.ray.engine import simulate
from fedprune.engines.ray.nodes import Unserved
from fedprune.engines.ray.own import RayAhead, ray_ahead
from fedprune.engines.ray.starting import leave, require_ray
from fedprune.options.refusal import ConfigError
from fedprune.records.bound import Going
from fedprune.records.folder import CONFIG_NAME, check_resumable, fresh_folder
from fedprune.report.screen import Screen
from fedprune.report.tracking import check_trackers
from fedprune.run import NoRoundCompleted, run_federated
from fedprune.runtime.ending import BAD_INPUT, FAILED, ended, report_error, resumable
from fedprune.runtime.process import trim_memory
from fedprune.server.fleet import fleet_of
from fedprune.tasks.coverage import reading_of
from fedprune.tasks.shards import data_digest

_PROGRAM = "run.py"


def main(
    arguments: list[str] | None = None, program: str = _PROGRAM, *, leaving: bool = False
) -> int:
    """Run the command line.

    `leaving`: the process ends after this, see `fedprune.engines.ray.engine.simulate`.

    Returns:
        0: the run completed rounds. 1: it began and came to nothing, or could not write. 2: bad
        input, or Ray that cannot start. 130: interrupted.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if any(word.partition("=")[0] == "--seeds" for word in given):
        from fedprune.commands.seeds import run_seeds  # with scipy, for which no run waits

        return ended(lambda: run_seeds(given, program), program)
    if "--dry-run" in given:
        return ended(lambda: _dry_run(given, program), program)
    return ended(lambda: _main(given, program, leaving), program)


def _dry_run(arguments: list[str], program: str) -> int:
    """Print the configuration and what it would take; nothing is written."""
    from fedprune.library.estimating import estimate_lines, estimate_of

    screen = Screen()
    try:
        config, _, _ = run_asked_for(arguments, program)
        if config.engine == "flower":
            raise ConfigError("engine='flower': no dry run; allowed: auto, ray, inline")
        folder, _ = fresh_folder(config), fleet_of(config)
        _require_ray(config)
        screen.line(to_toml(config).rstrip())
        screen.line()
        host = _opened(screen, config, folder)
        screen.shards(labels_of(host), host.task.unit, reading_of(config))
        for text in estimate_lines(estimate_of(host)):
            screen.line(text)
    except (ConfigError, FileNotFoundError, ImportError, ValueError) as error:
        return report_error(program, error, BAD_INPUT)
    return 0


def _opened(screen: Screen, config: RunConfig, folder: Path) -> Host:
    """The host of a run, after what is said before and about its model."""
    screen.opening(config, folder)
    host = build_host(config)
    screen.model(type(host.model).__name__, host.layout, config)
    return host


def _require_ray(config: RunConfig) -> None:
    if config.engine == "ray" or config.ray_address or config.gpus > 0:
        require_ray(config)


def _main(arguments: list[str], program: str, leaving: bool) -> int:
    try:
        config, resume, anyway = run_asked_for(arguments, program)
        if config.engine == "flower":
            raise ConfigError("engine='flower': started by flwr run; allowed: auto, ray, inline")
        check_trackers(config)
        fleet_of(config)  # its file is read, or refused, before anything is said
        if config.adapters != "none":
            require_peft()
        folder = fresh_folder(config) if resume is None else resume
        if resume is not None:
            check_resumable(resume)
        _require_ray(config)
    except (ConfigError, FileNotFoundError, ImportError, ValueError) as error:
        return report_error(program, error, BAD_INPUT)
    ahead = ray_ahead(config)
    try:
        return _run(config, folder, Going(resume is not None, anyway), program, ahead, leaving)
    finally:
        if ahead is not None and not leaving:
            ahead.end()


def _run(
    config: RunConfig,
    folder: Path,
    going: Going,
    program: str,
    ahead: RayAhead | None,
    leaving: bool,
) -> int:
    screen = Screen()
    try:
        host = _opened(screen, config, folder)
        screen.response(config, host.layout)
        screen.shards(labels_of(host), host.task.unit, reading_of(config))
        host, takes = _with_engine(host, screen)
    except (ConfigError, FileNotFoundError, ImportError, ValueError) as error:
        return report_error(program, error, BAD_INPUT)
    go_on = f"to go on: fedprune run --resume {shlex.quote(str(folder))}"
    try:
        with resumable(go_on):
            _play(host, takes, folder, screen, going, ahead, leaving)
    except Unserved as error:
        return report_error(program, f"{error}; {go_on}", FAILED)
    except ConfigError as error:  # what only the first pruning, or Ray, could tell
        return report_error(program, error, BAD_INPUT)
    except BrokenPipeError:
        raise
    except OSError as error:
        begun = (folder / CONFIG_NAME).is_file()
        text = f"out={str(folder)!r}: {error}; allowed: a folder on a disk with room to write"
        return report_error(
            program, f"{text}; {go_on}" if begun else text, FAILED if begun else BAD_INPUT
        )
    finally:
        screen.stop()
    return 0


def _with_engine(host: Host, screen: Screen) -> tuple[Host, Footprint]:
    """The host of a run whose engine is known, and what a worker would take."""
    config = host.config
    if config.engine == "inline":
        screen.engine("inline", "this process, as asked")
        return host, Footprint()
    takes = footprint_of(host)
    choice = Choice("ray", "as asked")
    if config.engine == "auto":
        choice = chosen_engine(config, host.shards, takes)
        config = with_values(config, {"engine": choice.engine})
        if choice.engine == "ray":
            require_ray(config)
    screen.engine(choice.engine, choice.why)
    host = replace(host, config=config)
    return (_without_model(host) if choice.engine == "ray" else host), takes


def _without_model(host: Host) -> Host:
    """The host as far as it is looked at where workers serve: the weights are let go of."""
    none = nn.Identity()
    host = replace(host, model=none, tuned=none, base=None)
    trim_memory(host.layout.parameters, first=True)
    return host


def _play(
    host: Host,
    takes: Footprint,
    folder: Path,
    screen: Screen,
    going: Going,
    ahead: RayAhead | None,
    leaving: bool,
) -> None:
    config = host.config
    if config.engine == "inline":
        port = inline_port(host, screen.tick, in_run(folder))
        with suppress(NoRoundCompleted):  # the screen says so, after what there is to say
            watch, (resume, anyway) = screen.watch(), (going.resume, going.anyway)
            run_federated(config, port, folder=folder, resume=resume, anyway=anyway, watch=watch)
        screen.closing(folder)
    else:
        going = replace(going, data=lambda: data_digest(host.shards))
        about = (host.shards, labels_of(host), takes)
        simulate(config, folder, screen, going, *about, leaving=leaving, ahead=ahead)


def script(arguments: list[str] | None = None, program: str = _PROGRAM) -> None:
    """Run the command line, and end this process with its code."""
    try:
        code = main(arguments, program, leaving=True)
    except SystemExit as end:  # --help and --list, or a run that came to nothing
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    leave(code)
