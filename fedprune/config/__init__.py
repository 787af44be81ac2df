"""The configuration: one schema for the TOML file, the command line and Flower's run config."""

from fedprune.config.schema import (
    RunConfig,
    all_keys,
    configure,
    flat,
    from_flower,
    from_toml,
    given_in,
    overridden,
    recorded,
    to_toml,
    with_values,
)
from fedprune.options.refusal import ConfigError
from fedprune.options.section import BY_TASK

__all__ = [
    "BY_TASK",
    "ConfigError",
    "RunConfig",
    "all_keys",
    "configure",
    "flat",
    "from_flower",
    "from_toml",
    "given_in",
    "overridden",
    "recorded",
    "to_toml",
    "with_values",
]
