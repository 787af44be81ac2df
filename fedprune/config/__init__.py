"""The configuration: one schema for the TOML file, the command line and Flower's run config."""

from typing import TYPE_CHECKING

from fedprune.options.option import BY_TASK
from fedprune.options.refusal import ConfigError
from fedprune.runtime.later import offered

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig, configure, flat, overridden, with_values
    from fedprune.config.toml_text import (
        all_keys,
        from_flower,
        from_toml,
        given_in,
        recorded,
        to_toml,
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

_SCHEMA = ("RunConfig", "configure", "flat", "overridden", "with_values")
_TOML = ("all_keys", "from_flower", "from_toml", "given_in", "recorded", "to_toml")

__getattr__ = offered(
    __name__,
    {
        **dict.fromkeys(_SCHEMA, "fedprune.config.schema"),
        **dict.fromkeys(_TOML, "fedprune.config.toml_text"),
    },
)
