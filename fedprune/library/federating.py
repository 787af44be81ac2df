"""A run from a program: on a configuration, or on a task and options."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedprune.client.footprint import footprint_of
from fedprune.client.host import build_host, labels_of
from fedprune.client.memory import in_run
from fedprune.config import RunConfig
from fedprune.config.options import Engine
from fedprune.engines.inline import inline_port
from fedprune.engines.ray.engine import ray_grid
from fedprune.engines.ray.starting import require_ray
from fedprune.learning.local_training import Train, tune
from fedprune.library.keywords import told_in_keywords
from fedprune.options.refusal import ConfigError, shown
from fedprune.protocol.port import Port
from fedprune.report.callback import Callback, callbacks_of
from fedprune.report.result import Result
from fedprune.report.screen import Screen
from fedprune.run import run_federated
from fedprune.runtime.process import put_back
from fedprune.server.watch import Watch, both
from fedprune.tasks.catalog import OWN, known_as_own
from fedprune.tasks.task import Task


@told_in_keywords()
def federate(
    what: RunConfig | Task | None = None,
    port: Port | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    anyway: bool = False,
    watch: Watch | None = None,
    weights: Mapping[str, Tensor] | None = None,
    progress: bool | None = None,
    train: Train | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Result:
    """Run federated pruning to its end; afterwards the process is as it was.

    That is `fedprune.runtime.process.put_back`: threads, global generators, settings of libraries.

    Args:
        what: a configuration; or a task, such as `fedprune.own_task` makes, or nothing, with
            options beside it (``federate(task="digits", clients=8)``).
        port: the clients; by default all are served in this process, without Flower or Ray, or,
            with ``engine="ray"``, by workers on Ray. Both give the same bits.
        folder: where results go; None keeps nothing on disk.
        resume: go on from the folder's checkpoints, to the same bits as an unbroken run.
        anyway: go on although configuration, data, plug-in or versions are not those that the run
            began with; the summary then says so (``resumed_anyway``).
        watch: who looks on.
        weights: the state to begin with instead of the task's seeded initialisation.
        progress: whether to print a line for each round, and a bar; None: in a notebook.
        train: how a client trains here, in place of `fedprune.learning.local_training.tune`.
        callbacks: who is told of each round, after those of the plug-in.
        options: of `fedprune.RunConfig`, where `what` is no configuration.

    Raises:
        NoRoundCompleted: every round had too few answers, or the privacy budget did not allow for
            one. The folder holds all that a run's folder holds, and the summary says why.
        ConfigError: an option is refused, or task, data and choices do not fit the model (nothing
            was asked or written then), or it is what only the first pruning could tell.
    """
    task = what if isinstance(what, Task) else None
    place = None if folder is None else Path(folder)
    going = {"folder": place, "resume": resume, "anyway": anyway, "weights": weights}
    with nullcontext() if task is None else known_as_own(task):
        config = configured_by(what, options)
        told = [*callbacks_of(config.plugin), *map(_called_back, callbacks)]
        _check_train(train, config, port)
        screen = Screen() if (_in_notebook() if progress is None else progress) else None
        done = _watched(config, port, {**going, "callbacks": told}, watch or Watch(), screen, train)
    return replace(done, task=task)


def _check_train(train: Train | None, config: Engine, port: Port | None) -> None:
    if train is not None and (port is not None or config.engine == "ray"):
        raise ConfigError(
            "train: a function of this program, for clients in this process; allowed: "
            "engine='inline' and no port"
        )


def _watched(
    config: RunConfig,
    port: Port | None,
    going: dict[str, Any],
    watch: Watch,
    screen: Screen | None,
    train: Train | None,
) -> Result:
    """The run, with lines on a screen where there is one."""
    look = watch if screen is None else both(_opened(screen, config), watch)
    try:
        if config.engine == "ray" and port is None:
            return _on_ray(config, {**going, "watch": look}, screen)
        if port is None and (screen is not None or train is not None):
            tick = None if screen is None else screen.tick
            port = inline_port(
                build_host(config, train=train or tune), tick, in_run(going["folder"])
            )
        return run_federated(config, port, watch=look, **going)
    finally:
        if screen is not None:
            screen.stop()


def _called_back(callback: Callback) -> Callback:
    if isinstance(callback, type) or not isinstance(callback, Callback):
        what = "objects of classes that inherit from fedprune.Callback"
        raise ConfigError(f"callbacks={shown(callback)}: no callback; allowed: {what}")
    return callback


def configured_by(what: RunConfig | Task | None, options: Mapping[str, Any]) -> RunConfig:
    """The configuration that is given, or that of a task, or of nothing, and options.

    Raises:
        ConfigError: options beside a configuration, or ones that do not fit.
    """
    if isinstance(what, RunConfig):
        if options:
            raise ConfigError(
                f"{', '.join(options)}: beside a configuration; allowed: in RunConfig(...) itself"
            )
        return what
    if isinstance(what, Task):
        if "task" in options:
            raise ConfigError(f"task={options['task']!r}: a task is given already; allowed: one")
        return RunConfig(task=OWN, **options)
    if what is not None:
        takes = "a RunConfig, own_task(model, data), or options alone (task='digits')"
        raise ConfigError(f"what={type(what).__name__}: no configuration; allowed: {takes}")
    return RunConfig(**options)


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this program."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _opened(screen: Screen, config: RunConfig) -> Watch:
    screen.opening(config, None)
    return screen.watch()


def _on_ray(config: RunConfig, going: Mapping[str, Any], screen: Screen | None) -> Result:
    """The run on workers of Ray, which build task and data themselves."""
    if config.task == OWN:
        raise ConfigError(
            "engine='ray': a task made in this program is known to this process alone; "
            "allowed: engine='inline', or a file with TASKS as plugin="
        )
    require_ray(config)
    from fedprune.engines.flower.grid import grid_port  # with Flower, for which no other run waits

    host = build_host(config)
    about = (host.shards, labels_of(host), footprint_of(host))
    with put_back(), ray_grid(config, *about) as grid:
        tick = None if screen is None else screen.tick
        asking = grid_port(grid, config, tick, in_run(going["folder"]))
        return run_federated(config, asking, **going)
