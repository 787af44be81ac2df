"""A configuration as TOML: what was given, what followed, and how it is read back."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from fedprune.config.schema import RunConfig, configure, flat, with_given
from fedprune.options.plugins import with_code_of
from fedprune.options.refusal import ConfigError

_HEAD = "# What was given: --config reads these keys, and all others follow from them again."

_FOLLOWED = "# What followed from it: read back to compare, and as a record of what ran."


def to_toml(config: RunConfig) -> str:
    """The configuration as TOML, keys spelled as on the command line.

    First the keys that were given, then, in the table ``followed``, those that followed from them.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    said = config.model_fields_set - {key for key, value in values.items() if value == ""}
    given, followed = (
        {key.replace("_", "-"): v for key, v in values.items() if (key in said) is wanted}
        for wanted in (True, False)
    )
    rest = tomli_w.dumps({"followed": followed})
    return f"{_HEAD}\n{tomli_w.dumps(given)}\n{_FOLLOWED}\n{rest}"


def from_toml(text: str) -> dict[str, Any]:
    """The keys that a TOML document gives; what followed from them when it was written is not.

    Raises:
        ConfigError: it is not TOML.
    """
    document = _document(text)
    document.pop("followed", None)
    return document


def all_keys(text: str) -> dict[str, Any]:
    """Every key of a TOML document as Python spells it, given or followed; as by `from_toml`."""
    document = _document(text)
    followed = document.pop("followed", {})
    return flat({**followed, **document})


def recorded(
    text: str,
    plugin: str | None = None,
    where: object = "a file",
    paths: Mapping[str, str] | None = None,
) -> RunConfig:
    """The configuration as it was when `to_toml` wrote it: nothing follows again.

    Args:
        text: of the document.
        plugin: the caller's plug-in, "" for none, where the text is a file's: that runs no code of
            its own choice. None: the text is the caller's own.
        where: the file, for messages.
        paths: by option, where its file is on this machine, if elsewhere.

    Raises:
        ConfigError: it is not TOML, no configuration, or names a plug-in that was not given.
    """
    keys = _of_caller(flat(all_keys(text)), plugin, where) | dict(paths or {})
    return with_given(configure(keys), flat(from_toml(text)))


def _of_caller(keys: dict[str, Any], plugin: str | None, where: object) -> dict[str, Any]:
    """The keys with the caller's plug-in, see `recorded`."""
    try:
        return keys if plugin is None else with_code_of(plugin, keys, where)
    except ValueError as error:
        raise ConfigError(str(error), "plugin") from None


_LONGEST = 2**20
"""Characters of a configuration: some thousands, and the names of classes."""

_DOTS = 2**26
"""The sum over lines of their dots, squared: so much work are the parts of a key to tomllib."""


def _document(text: str) -> dict[str, Any]:
    if len(text) > _LONGEST or sum(line.count(".") ** 2 for line in text.split("\n")) > _DOTS:
        raise ConfigError("config: too long to be one; allowed: flat keys, as in --help-all")
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise ConfigError(
            f"config: not TOML: {error}; allowed: flat keys, as in --help-all"
        ) from None
    if not isinstance(found.get("followed", {}), dict):
        raise ConfigError("followed: no such key; allowed: the table that a run wrote")
    return found


def given_in(text: str, plugin: str | None = None, where: object = "a file") -> dict[str, Any]:
    """As `from_toml`; of a document with every key and no word of what followed, those that count.

    Earlier versions wrote such: there, what would follow with the same value is taken to have
    followed. Of `plugin` and `where` see `recorded`.

    Raises:
        ConfigError: it is not TOML, or names a plug-in that was not given.
    """
    given = _of_caller(flat(from_toml(text)), plugin, where)
    if "followed" in _document(text) or not {"task", "clip", "wire", "verbose"} <= given.keys():
        return given
    whole = configure(given)
    # The noise last: to see whether it follows takes longest.
    for key in [*(k for k in reversed(RunConfig.model_fields) if k != "dp_noise"), "dp_noise"]:
        fewer = {k: value for k, value in given.items() if k != key}
        if key in given and _follows(fewer, whole):
            given = fewer
    return given


def _follows(given: Mapping[str, Any], whole: RunConfig) -> bool:
    """Whether a configuration follows from these keys."""
    try:
        return configure(given) == whole
    except ConfigError:
        return False


FLOWERS_OWN = ("toml", "resume", "resume-anyway")
"""Keys of Flower's run config that are no options: of how a run is put, as on the command line."""


def from_flower(run_config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys given in Flower's flat run config: those of ``toml``, and those beside it, not "".

    A whole configuration may come as one TOML document under ``toml``; the other keys win over it.

    Raises:
        ConfigError: the document is not TOML.
    """
    beside = {k: v for k, v in run_config.items() if v != "" and k not in FLOWERS_OWN}
    return given_in(str(run_config.get("toml", ""))), beside
