"""``fedprune run --dry-run``: what a run would take, and nothing is written."""

from __future__ import annotations

from fedprune.client.host import build_host, labels_of
from fedprune.commands.arguments import run_asked_for
from fedprune.config import to_toml
from fedprune.engines.ray.starting import require_ray
from fedprune.library.estimating import estimate_lines, estimate_of
from fedprune.options.refusal import ConfigError
from fedprune.records.folder import fresh_folder
from fedprune.report.screen import Screen
from fedprune.runtime.ending import BAD_INPUT, report_error
from fedprune.server.fleet import fleet_of
from fedprune.tasks.coverage import reading_of


def dry_run(arguments: list[str], program: str) -> int:
    """Print the configuration and what it would take; gives back the exit code."""
    screen = Screen()
    try:
        config, _, _ = run_asked_for(arguments, program)
        if config.engine == "flower":
            raise ConfigError("engine='flower': no dry run; allowed: auto, ray, inline")
        folder, _ = fresh_folder(config), fleet_of(config)
        if config.engine == "ray" or config.ray_address or config.gpus > 0:
            require_ray(config)
        screen.line(to_toml(config).rstrip())
        screen.line()
        screen.opening(config, folder)
        host = build_host(config)
        screen.model(type(host.model).__name__, host.layout, config)
        screen.shards(labels_of(host), host.task.unit, reading_of(config))
        for text in estimate_lines(estimate_of(host)):
            screen.line(text)
    except (ConfigError, FileNotFoundError, ImportError, ValueError) as error:
        return report_error(program, error, BAD_INPUT)
    return 0
