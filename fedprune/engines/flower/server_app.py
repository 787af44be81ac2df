"""Flower ServerApp: ``flwr run .`` lands here, in simulation and on devices alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedprune.client.memory import in_run
from fedprune.config import RunConfig, from_flower, overridden
from fedprune.engines.flower.announced import networked
from fedprune.engines.flower.grid import grid_port
from fedprune.options.refusal import ConfigError
from fedprune.protocol.models import dense_model, layout_for
from fedprune.records.bound import Going
from fedprune.records.folder import CONFIG_NAME, check_resumable, fresh_folder
from fedprune.records.resumed import resumed_config
from fedprune.records.writing import wait_for_writer
from fedprune.report.screen import Screen
from fedprune.run import NoRoundCompleted, run_federated
from fedprune.runtime.process import hand_back_at_once
from fedprune.tasks.catalog import OWN, known_if_own
from fedprune.tasks.task import Task

LEFT_OVER = 60.0
"""Seconds that a resumed run waits for a server app whose SuperLink was killed: it ends by itself
once it asks in vain, and holds the folder until then."""

_WAITING = f"another run still writes there: waiting, for {LEFT_OVER:g} s at most, until it ends"


class RunFailed(Exception):
    """The run came to nothing; Flower shows the one line and marks the run as failed."""


def _one_line(record: logging.LogRecord) -> bool:
    """A filter for Flower's log: of a run that came to nothing its one line, no traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, RunFailed):
        record.msg, record.args, record.exc_info = "%s", (error,), None
    return True


def server_app(keys: Mapping[str, Any] | None = None, task: Task | None = None) -> ServerApp:
    """A ServerApp that runs what the run config says.

    Args:
        keys: of a configuration, by the names of the command line, for where the run config says
            nothing.
        task: what is learned; the client app is given the same one.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_app(grid, context, keys or {}, task)

    return app


def run_app(
    grid: Grid, context: Context, keys: Mapping[str, Any], task: Task | None = None
) -> None:
    """Run what the run config says, and what `keys` say where it says nothing, on a task.

    Results go to ``out`` or to ``runs/<task>-<time>``. A relative path is relative to the folder
    in which the SuperLink was started: this process is its child, and the user's own folder is
    not known here. So the absolute path is shown.

    Raises:
        RunFailed: the configuration is refused, or no round was completed.
    """
    logging.getLogger("flwr").addFilter(_one_line)
    hand_back_at_once()
    with known_if_own(task)():
        _run_app(grid, context, keys if task is None else {**keys, "task": OWN})


def _run_app(grid: Grid, context: Context, keys: Mapping[str, Any]) -> None:
    try:
        config, folder, going, left_out = _asked_for(context.run_config, keys)
    except (OSError, ImportError, ValueError) as error:
        raise RunFailed(f"fedprune: {error}") from None
    screen = Screen()
    for line in left_out:
        screen.line(f"toml: {line}")
    screen.opening(config, folder, own_data=networked(grid))
    _show_model(screen, config)
    try:
        run_on(grid, config, folder, screen, going)
    except ConfigError as error:
        raise RunFailed(f"fedprune: {error}") from None
    except ConnectionError:  # of Flower's own
        raise
    except OSError as error:
        text = f"out={str(folder)!r}: {error}; allowed: a folder on a disk with room to write"
        go_on = f"; to go on: resume={str(folder)!r}" if (folder / CONFIG_NAME).is_file() else ""
        raise RunFailed(f"fedprune: {text}{go_on}") from None
    except SystemExit as end:  # Flower would take the end of its thread for success
        raise RunFailed(str(end)) from None


def _show_model(screen: Screen, config: RunConfig) -> None:
    """Say what is pruned; the model is not kept: a large one more is one too many."""
    try:
        model = dense_model(config)
        layout = layout_for(config, model)
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise RunFailed(f"fedprune: {error}") from None
    screen.model(type(model).__name__, layout, config)
    screen.response(config, layout)


def _asked_for(
    run_config: Mapping[str, Any], keys: Mapping[str, Any]
) -> tuple[RunConfig, Path, Going, Sequence[str]]:
    """What is to run, where its results go, how it goes on, and what was left out of a file."""
    base, beside = from_flower(run_config)
    own = {key.replace("-", "_"): value for key, value in keys.items()}
    resume, anyway = (run_config.get(key) or "" for key in ("resume", "resume-anyway"))
    if resume:
        folder = Path(str(resume)).resolve()
        if folder.is_dir():
            wait_for_writer(folder, LEFT_OVER, lambda: print(_WAITING, flush=True))
        beside = {key.replace("-", "_"): value for key, value in {**base, **beside}.items()}
        given = {key: own[key] for key in ("plugin",) if key in own} | beside
        config = resumed_config(folder, {**given, "engine": "flower"}, anyway=bool(anyway))
        check_resumable(folder)
        return config, folder, Going(resume=True, anyway=bool(anyway)), ()
    if anyway:
        raise ConfigError("resume-anyway: nothing is resumed; allowed: beside resume=DIR")
    config, left_out = overridden({**own, **base}, {**beside, "engine": "flower"})
    return config, fresh_folder(config).resolve(), Going(), left_out


def run_on(
    grid: Grid, config: RunConfig, folder: Path, screen: Screen, going: Going | None = None
) -> None:
    """Run a configuration over a grid and show it.

    Results go to the folder; `going` says whether to go on from its checkpoints.

    Raises:
        SystemExit: no round was completed.
    """
    g = going or Going()
    port = replace(grid_port(grid, config, screen.tick, in_run(folder)), data=g.data)
    watch = screen.watch()
    with suppress(NoRoundCompleted):  # the screen says so, after what there is to say
        run_federated(config, port, folder=folder, resume=g.resume, anyway=g.anyway, watch=watch)
    screen.closing(folder)


app = server_app()
"""The app of who brings no keys of its own."""
