"""The configuration: one schema for the TOML file, the command line and Flower's run config."""

from typing import TYPE_CHECKING

from fedprune.options.refusal import ConfigError
from fedprune.options.section import BY_TASK
from fedprune.runtime.later import offered

if TYPE_CHECKING:
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

_HERE = {"BY_TASK", "ConfigError"}

__getattr__ = offered(
    __name__, {name: "fedprune.config.schema" for name in __all__ if name not in _HERE}
)
