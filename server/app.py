"""Flower ServerApp: ``flwr run .`` lands here, in simulation and on devices alike."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedprune.config import ConfigError, RunConfig, configure, from_flower
from fedprune.report.folder import fresh_folder
from fedprune.report.screen import Screen
from server.strategy import FedPrune

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says; results go to ``out`` or to ``runs/<task>-<time>``.

    Raises:
        SystemExit: the configuration is refused, or no round was completed.
    """
    try:
        config = configure(from_flower(context.run_config))
        folder = fresh_folder(config)
    except ConfigError as error:
        raise SystemExit(f"fedprune: {error}") from None
    screen = Screen()
    screen.opening(config, folder)
    run_on(grid, config, folder, screen)


def run_on(
    grid: Grid,
    config: RunConfig,
    folder: Path,
    screen: Screen,
    *,
    resume: bool = False,
    expected: int | None = None,
) -> None:
    """Run a configuration over a grid and show it.

    Args:
        grid: Flower's grid.
        config: what to run.
        folder: where results go.
        screen: where people look.
        resume: go on from the folder's checkpoints.
        expected: nodes to wait for; by default as many as a round needs answers.

    Raises:
        SystemExit: no round was completed.
    """
    strategy = FedPrune(
        config,
        folder,
        resume,
        screen.watch(),
        screen.tick,
        config.min_clients if expected is None else expected,
    )
    strategy.start(grid)
    screen.closing(folder)
