"""Federated pruning on simulated clients: ``python simulations/run.py --clients 20``."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

# As a script this file's folder is on the path, the repository is not.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from fedprune.config import ConfigError
from fedprune.federation import NoRoundCompleted, federate
from fedprune.hosts import inline_port, labels_of, open_house, placed
from fedprune.report.folder import check_resumable, fresh_folder
from fedprune.report.screen import Screen
from simulations.options import chosen, main_error
from simulations.ray_engine import require_ray, simulate


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 for a run that completed rounds, 2 for bad input."""
    try:
        config, resume = chosen(sys.argv[1:] if arguments is None else arguments)
        if config.engine == "flower":
            raise ConfigError("engine='flower': started by flwr run; allowed: ray, inline")
        folder = fresh_folder(config) if resume is None else resume
        config = placed(config, folder)
        if resume is not None:
            check_resumable(resume)
        if config.engine == "ray":
            require_ray()
        screen = Screen()
        screen.opening(config, folder)
        house = open_house(config)
        screen.model(type(house.model).__name__, house.layout)
        screen.response(config, house.layout)
        screen.shards(labels_of(house), house.task.unit)
    except (ConfigError, FileNotFoundError, ImportError, ValueError) as error:
        return main_error(error)
    try:
        if config.engine == "inline":
            port = inline_port(house, screen.tick)
            with suppress(NoRoundCompleted):  # the screen says so, after what there is to say
                watch = screen.watch()
                federate(config, port, folder=folder, resume=resume is not None, watch=watch)
            screen.closing(folder)
        else:
            simulate(config, folder, screen, resume=resume is not None)
    except ConfigError as error:  # what only the first pruning could tell
        screen.stop()
        return main_error(error)
    except KeyboardInterrupt:
        screen.stop()
        print(
            f"\ninterrupted; to go on: python simulations/run.py --resume {folder}", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
