"""Refusals as a program is told them: one kind of error, with keywords in place of flags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_origin

from fedprune.config.sections import AllOptions
from fedprune.methods.catalog import METHODS
from fedprune.options.option import options_of
from fedprune.options.refusal import ConfigError

_FORM = "allowed: "  # What every refusal has in its line, whichever package it comes from

_KEY = re.compile(r"^[a-z][a-z0-9-]*(?==)")
_FLAG = re.compile(
    r"--([a-z][a-z0-9-]*)(?: (\"[^\"]*\"|'[^']*'|[A-Z][A-Z_]*\b|-?\d[\w.]*|[a-z][\w:.*-]*))?"
)


def in_keywords(line: str) -> str:
    """A line about options with their keywords: ``exclude=('a',)`` for ``--exclude 'a'``.

    Words after a flag count as its value where they are quoted, capitals, a number or a name that
    the option takes. What is no option of a configuration stays as it is.
    """
    line = _KEY.sub(lambda found: _known(found[0]) or found[0], line)
    return _FLAG.sub(_keyword, line)


def _known(flag: str) -> str:
    key = flag.replace("-", "_")
    return key if key in AllOptions.model_fields else ""


def _keyword(found: re.Match[str]) -> str:
    value, key = found[2], _known(found[1])
    if not key:
        return found[0]
    if value is None:
        return f"{key}=..."
    if value[0].islower():
        if value not in _values(key) and not set(value) & set("._*"):
            return f"{key}=... {value}"
        value = {"true": "True", "false": "False"}.get(value, repr(value))
    several = get_origin(AllOptions.model_fields[key].annotation) is tuple
    return f"{key}=({value},)" if several else f"{key}={value}"


def _values(key: str) -> set[str]:
    field, names = AllOptions.model_fields[key], options_of(AllOptions)[key].says.names
    listed = METHODS if key == "method" else names("") if callable(names) else names or {}
    return {*listed, *re.findall(r"'([\w:-]+)'", str(field.annotation)), "true", "false"}


@contextmanager
def told_in_keywords() -> Iterator[None]:
    """Every refusal within is a `ConfigError` in a program's words.

    Raises:
        ConfigError: for a ValueError that says what is allowed.
    """
    try:
        yield
    except ValueError as error:
        if _FORM not in str(error):
            raise
        said: Any = error if isinstance(error, ConfigError) else ConfigError(str(error))
        line = in_keywords(str(said))
        raise ConfigError(line, said.key, said.allowed, idle=said.idle) from error
