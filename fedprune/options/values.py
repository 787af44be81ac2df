"""Keys as they are given: one way to read a value, and what another value takes the place of.

The command line has text only, TOML and Flower's run config have types of their own. All three
come through `parsed`, so that one value is read one way.
"""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

COLUMNS = ("text_column", "label_column", "target_column", "client_column")
"""Keys whose value may be any text, ``none`` included."""

_AMOUNTS = ("sparsity", "threshold", "target_bytes", "target_flops")
_RANKS = ("rank_energy", "rank_budget", "rank_tolerance")
_OF_THE_TASK = (
    *("model", "depth", "width", "length", "data", "encoding", *COLUMNS, "small_owners"),
    *("split", "alpha", "vocabulary"),
)

_REPLACES: dict[str, tuple[str, ...]] = {
    "task": _OF_THE_TASK,
    "local_steps": ("local_epochs",),
    "local_epochs": ("local_steps",),
    **dict.fromkeys(_AMOUNTS, _AMOUNTS),
    "threshold": (*_AMOUNTS, "schedule"),
    **dict.fromkeys(_RANKS, _RANKS),
}
"""Keys that say the same in other ways, or that say it of another task."""


def replaced(given: Iterable[str], changes: Mapping[str, Any]) -> set[str]:
    """The keys given whose place the changes take, less the changes themselves."""
    said = [key for key, value in changes.items() if value or key in _AMOUNTS]
    gone = {name for key in said for name in _REPLACES.get(key, ())}
    return {key for key in given if key in gone and key not in changes}


def in_pythons_types(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, of NumPy's whole numbers Python's own."""
    return {
        key: int(v) if isinstance(v, Integral) and not isinstance(v, int) else v
        for key, v in given.items()
    }


def parsed(key: str, value: Any, annotation: Any) -> Any:
    """A value as the key has it, where it can be read so; what cannot is given back as it is.

    Text becomes a number, a boolean, names, numbers or a table; ``none`` is None where a key may
    be left out; a whole float becomes an integer where one is wanted.
    """
    kinds = kinds_of(annotation)
    text, optional = isinstance(value, str), types.NoneType in kinds
    if text and optional and key not in COLUMNS and value.strip().lower() == "none":
        return None
    if bool in kinds:
        return {"true": True, "false": False}.get(value.strip().lower(), value) if text else value
    if any(typing.get_origin(kind) is dict for kind in kinds):
        return _table(value) if text else value
    if found := [kind for kind in kinds if typing.get_origin(kind) is tuple]:
        return _listed(value, typing.get_args(found[0])[0])
    if int in kinds or float in kinds:
        return _number(value, int if int in kinds else float)
    return value


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The types that a union names, or the one type that is none."""
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return typing.get_args(annotation) if union else (annotation,)


def _number(value: Any, kind: type) -> Any:
    """The number in a text; of a whole one an int, where that is wanted."""
    if isinstance(value, str):
        for read in (int, float):
            try:
                value = read(value)
                break
            except ValueError:
                continue
    whole = kind is int and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def _listed(value: Any, kind: Any) -> Any:
    """A tuple of names or of numbers, from a list or from text with commas."""
    if isinstance(value, str):
        value = _in_toml(value, list) or _split(value)
    if kind in (int, float) and isinstance(value, list | tuple):
        return tuple(_number(part, kind) for part in value)
    return tuple(value) if isinstance(value, list) else value


def _split(text: str) -> list[str]:
    """The parts of a text between commas; those in the brackets of a shell pattern do not count."""
    parts = re.split(r",(?![^\[\]]*\])", text)
    return [part.strip() for part in parts] if text.strip() else []


def _table(text: str) -> Any:
    """Numbers by pattern, from ``PATTERN=NUMBER,...`` or from a table of TOML."""
    if (found := _in_toml(text, dict)) is not None:
        return found
    pairs = [part.rpartition("=") for part in _split(text)]
    names = {pattern.strip() for pattern, equals, _ in pairs if equals}
    if len(names) < len(pairs):  # also where a pattern is there twice
        return text
    return {pattern.strip(): _number(number, float) for pattern, _, number in pairs}


def _in_toml(text: str, kind: type) -> Any:
    """The list of names or the table that a text is in TOML; None where it is neither."""
    if not text.strip().startswith(("[", "{")):
        return None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None
    named = not isinstance(value, list) or all(isinstance(part, str) for part in value)
    return value if isinstance(value, kind) and named else None


def as_text(value: Any) -> Any:
    """A list or a table as text that `parsed` reads again; any other value as it is."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {v!r}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        plain = ",".join(map(str, value))
        return plain if _split(plain) == [str(part) for part in value] else json.dumps(value)
    return value


def for_flower(value: Any) -> str:
    """A value in TOML as ``--run-config`` takes it: there, a text ends at the next quote."""
    text = json.dumps(as_text(value), ensure_ascii=False)
    inner = re.sub(r"\\(.)", lambda m: "\\u0022" if m[1] == '"' else m[0], text[1:-1])
    return f'"{inner}"' if text.startswith('"') else text
