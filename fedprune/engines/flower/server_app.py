"""Flower ServerApp: ``flwr run .`` lands here, in simulation and on devices alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedprune.config import RunConfig, from_flower, overridden
from fedprune.engines.flower.announced import networked
from fedprune.engines.flower.strategy import FedPrune
from fedprune.options.refusal import ConfigError
from fedprune.protocol.models import dense_model, layout_for
from fedprune.records.bound import Going
from fedprune.records.folder import check_resumable, fresh_folder
from fedprune.records.resumed import resumed_config
from fedprune.report.screen import Screen
from fedprune.run import NoRoundCompleted
from fedprune.tasks.catalog import OWN, known_if_own
from fedprune.tasks.task import Task


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
    with known_if_own(task)():
        _run_app(grid, context, keys if task is None else {**keys, "task": OWN})


def _run_app(grid: Grid, context: Context, keys: Mapping[str, Any]) -> None:
    try:
        config, folder, going, left_out = _asked_for(context.run_config, keys)
    except (ConfigError, FileNotFoundError, ImportError, ValueError) as error:
        raise RunFailed(f"fedprune: {error}") from None
    screen = Screen()
    for line in left_out:
        screen.line(f"toml: {line}")
    screen.opening(config, folder, own_data=networked(grid))
    model = dense_model(config)
    layout = layout_for(config, model)
    screen.model(type(model).__name__, layout, config)
    screen.response(config, layout)
    try:
        run_on(grid, config, folder, screen, going)
    except ConfigError as error:
        raise RunFailed(f"fedprune: {error}") from None
    except SystemExit as end:  # Flower would take the end of its thread for success
        raise RunFailed(str(end)) from None


def _asked_for(
    run_config: Mapping[str, Any], keys: Mapping[str, Any]
) -> tuple[RunConfig, Path, Going, Sequence[str]]:
    """What is to run, where its results go, how it goes on, and what was left out of a file.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
    """
    base, beside = from_flower(run_config)
    own = {key.replace("-", "_"): value for key, value in keys.items()}
    resume, anyway = (run_config.get(key) or "" for key in ("resume", "resume-anyway"))
    if resume:
        folder = Path(str(resume)).resolve()
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

    Args:
        grid: Flower's grid.
        config: what to run.
        folder: where results go.
        screen: where people look.
        going: whether to go on from the folder's checkpoints.

    Raises:
        SystemExit: no round was completed.
    """
    with suppress(NoRoundCompleted):  # the screen says so, after what there is to say
        g = going or Going()
        watch = screen.watch()
        FedPrune(config, folder, g.resume, watch, screen.tick, g.anyway, g.data).start(grid)
    screen.closing(folder)


app = server_app()
"""The app of who brings no keys of its own."""
