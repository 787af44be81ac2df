"""The configuration with which a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedprune.config import RunConfig, configure, from_toml, recorded
from fedprune.options.refusal import ConfigError
from fedprune.records.bound import RESUMABLE
from fedprune.records.folder import CONFIG_NAME
from fedprune.records.longer import longer

MORE = RESUMABLE | {"rounds"}
"""Keys that may be given on --resume; of rounds only more than there were."""


def resumed_config(
    folder: Path, given: dict[str, Any], file: str | None = None, *, anyway: bool = False
) -> RunConfig:
    """The configuration of the run in a folder, which must be the one that ran.

    `given`: what is asked for beside; of its keys only `MORE` and the plug-in may be there. `file`:
    a configuration that is asked for, which cannot be.

    Raises:
        ConfigError: another is asked for, or something follows otherwise than when it began.
    """
    fixed, rounds = sorted(given.keys() - MORE - {"plugin"}), given.pop("rounds", None)
    if file is not None or fixed:
        key = "config" if file is not None else fixed[0].replace("_", "-")
        allowed = ", ".join(sorted(k.replace("_", "-") for k in MORE))
        raise ConfigError(f"{key}: cannot change on --resume; allowed: {allowed}")
    text = text_at(folder / CONFIG_NAME, "resume", "the folder of a run")
    plugin = given.pop("plugin", "")
    before = recorded(text, plugin, folder / CONFIG_NAME)
    config = configure({**from_toml(text), **({"plugin": plugin} if plugin else {})})
    for key, value in before:
        if (now := vars(config)[key]) != value and not anyway:
            raise ConfigError(
                f"{key.replace('_', '-')}={now!r}: follows from what {folder / CONFIG_NAME} gives, "
                f"and was {value!r} when the run began; allowed: the file as the run wrote it"
            )
    if rounds is not None:
        config = longer(config, rounds, anyway=anyway)
    return config.model_copy(update=given)


def text_at(path: Path, key: str, wanted: str = "a TOML file of options") -> str:
    """The text of a file that an option names.

    `wanted`: what it should have named, where there is no such file.
    """
    if not path.is_file():
        raise ConfigError(f"{key}={str(path)!r}: no such file; allowed: {wanted}")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{key}={str(path)!r}: {error.strerror}; allowed: a readable file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}={str(path)!r}: {error}; allowed: UTF-8") from None
