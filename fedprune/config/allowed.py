"""What a key of the schema takes, in words, and what is wrong with a value that it refuses."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedprune.options.name_table import NameTable
from fedprune.options.option import declared, options_of
from fedprune.options.refusal import ConfigError, named, refuse, shown
from fedprune.options.section import types_of
from fedprune.options.values import kinds_of

LARGEST_INTEGER = 2**63 - 1
"""The largest integer that TOML and Flower's run config can hold."""

LONGEST = 4096
"""Characters of the longest text: of the longest path, on most systems."""

_KEYS = "the options in --help-all"

_WRONG = {
    "int_type": "not a whole number",
    "int_parsing": "not a whole number",
    "int_from_float": "not a whole number",
    "float_type": "not a number",
    "float_parsing": "not a number",
    "finite_number": "not a finite number",
    "string_type": "not text",
    "bool_type": "neither true nor false",
    "tuple_type": "not a list",
    "dict_type": "not a table",
    "missing": "too few entries",
    "too_short": "too few entries",
    "too_long": "too many entries",
    "greater_than": "not above {gt}",
    "greater_than_equal": "below {ge}",
    "less_than": "not below {lt}",
    "less_than_equal": "above {le}",
    "multiple_of": "not a multiple of {multiple_of}",
}
"""What is wrong, by the type of pydantic's error and its context."""


def allowed(field: FieldInfo) -> str:
    """What an option takes, in words, from the schema and the tables of names."""
    kinds = [kind for kind in kinds_of(field.annotation) if kind is not types.NoneType]
    return ", or ".join(_in_words(kind, field) for kind in kinds)


def refused(error: ErrorDetails, fields: Mapping[str, FieldInfo]) -> ConfigError:
    """The refusal that one of ``ValidationError.errors()`` is: one line, by the schema's fields."""
    told = error.get("ctx", {}).get("error")
    if isinstance(told, ConfigError):
        return told
    name = str(error["loc"][0]) if error["loc"] else ""
    if not name:
        return ConfigError(error["msg"].removeprefix("Value error, "))
    if name not in fields:
        return no_such_key(name, error["input"], fields, dashed="-" in name)
    field, key = fields[name], name.replace("_", "-")
    takes = allowed(field)
    line = f"{key}={shown(error['input'])}: {_wrong(key, field, error)}; allowed: {takes}"
    return ConfigError(line, key, takes)


def no_such_key(
    name: str, value: Any, fields: Mapping[str, FieldInfo], *, dashed: bool
) -> ConfigError:
    """The refusal of a key that is not in the schema, with the nearest that is.

    `dashed`: the nearest is spelled with dashes, else as Python's names are.
    """
    if isinstance(value, Mapping):
        return ConfigError(f"{name}: no table is read; allowed: flat keys, as in --help-all", name)
    near = get_close_matches(name.replace("-", "_"), fields, 1, 0.0)[0]
    text = f"no such key; nearest: {near.replace('_', '-') if dashed else near}"
    return ConfigError(f"{name}={shown(value)}: {text}; allowed: {_KEYS}", name, _KEYS)


def unreadable(error: OSError, given: Mapping[str, Any]) -> str:
    """The line about a path that could not be looked at: the key that names it, and why."""
    path = str(error.filename or "")
    named = [key for key, value in given.items() if isinstance(value, str) and value in path]
    if not (path and error.strerror and named):
        return str(error)  # a message of ours
    key = max(named, key=lambda name: len(given[name]))
    reason = error.strerror[0].lower() + error.strerror[1:]
    return (
        f"{key.replace('_', '-')}={shown(given[key])}: {reason}; allowed: a path that can be read"
    )


def check_given(schema: type[BaseModel], given: Mapping[str, Any]) -> None:
    """Refuse keys that are none, values of other types, and what no type says.

    That is: entries of a list that are empty or there twice (whole numbers may be), text that no
    file can hold, integers of more than 64 bits. What the schema fills in is not looked at.

    Raises:
        ValidationError: of the types.
        ConfigError: one line.
    """
    typed = types_of(schema).model_validate(given)
    for key in typed.model_fields_set:
        value, field = vars(typed)[key], schema.model_fields[key]
        if wrong := _beyond_types(value, field):
            refuse(key.replace("_", "-"), value, wrong, allowed(field))


def check_keys(schema: type[BaseModel], given: Mapping[str, Any]) -> None:
    """`check_given`, with a ConfigError of one line whatever is wrong."""
    try:
        check_given(schema, given)
    except ValidationError as error:
        raise refused(error.errors()[0], schema.model_fields) from None


def check_built_in_names(schema: type[BaseModel], given: Mapping[str, Any]) -> None:
    """Refuse names that are in no table of ours, without importing what they stand for.

    For values that no plug-in can add to.

    Raises:
        ConfigError: one line, with the nearest name and all that are allowed.
    """
    options = options_of(schema)
    first = sorted(options, key=lambda key: key not in ("task", "score"))  # they decide the rest
    for key in first:
        table, value = options[key].says.names, given.get(key)
        if isinstance(table, NameTable) and isinstance(value, str):
            named((options[key].flag, value), table.keys())


def _beyond_types(value: Any, field: FieldInfo) -> str:
    """What is wrong with a value of the right type; "" where nothing is."""
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return f"above {LARGEST_INTEGER} in magnitude"
    for text in [value] if isinstance(value, str) else value if isinstance(value, tuple) else ():
        if isinstance(text, str) and (wrong := _unwritable(text)):
            return wrong
    if isinstance(value, tuple) and Ellipsis in _entries(field.annotation):
        if any(isinstance(entry, str) and not entry.strip() for entry in value):
            return "an entry is empty"
        alike = int not in _entries(field.annotation) and len(set(value)) < len(value)
        return "an entry is there twice" if alike else ""
    blank = isinstance(value, dict) and not all(map(str.strip, value))
    return "a pattern is empty" if blank else ""


def _unwritable(text: str) -> str:
    """Why no path and no file can hold a text; "" where they can."""
    if len(text) > LONGEST:
        return f"longer than {LONGEST} characters"
    unpaired = any("\ud800" <= character <= "\udfff" for character in text)
    return "not text of Unicode" if unpaired or "\0" in text else ""


def _wrong(key: str, field: FieldInfo, error: ErrorDetails) -> str:
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        kinds = [*kinds_of(field.annotation), *_entries(field.annotation)]
        literals = [k for k in kinds if typing.get_origin(k) is typing.Literal]
        names = [str(n) for kind in literals for n in typing.get_args(kind)]
        near = get_close_matches(shown(error["input"]).strip("'"), names, 1)
        return f"no such {key}{f' (did you mean {near[0]}?)' if near else ''}"
    if kind in _WRONG:
        return _WRONG[kind].format(**{k: _plain(v) for k, v in limits.items()})
    return error["msg"][0].lower() + error["msg"][1:]


def _entries(annotation: Any) -> tuple[Any, ...]:
    """The types of a tuple's entries; () for what is none."""
    tuples = [kind for kind in kinds_of(annotation) if typing.get_origin(kind) is tuple]
    return typing.get_args(tuples[0]) if tuples else ()


def _plain(bound: Any) -> str:
    """A bound without the fraction that it does not have."""
    return str(int(bound)) if isinstance(bound, float) and bound.is_integer() else str(bound)


def _limits(field: FieldInfo) -> dict[str, Any]:
    """Bounds of a number by name: ge, gt, le, lt, multiple_of."""
    names = ("ge", "gt", "le", "lt", "multiple_of")
    return {n: getattr(m, n) for m in field.metadata for n in names if hasattr(m, n)}


def _in_words(kind: Any, field: FieldInfo) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if origin is dict:
        numbers = typing.get_args(kind)[1] is float
        return "PATTERN=NUMBER,..., each pattern once" if numbers else "NAME=VALUE,..., each once"
    if origin is tuple:
        return _listed(typing.get_args(kind))
    if kind is bool:
        return "true, false"
    if kind in (int, float):
        return _number(kind, _limits(field))
    table = declared(field).names
    return ", ".join(table.keys()) if table is not None else "text, see --help and --list"


def _listed(kinds: tuple[Any, ...]) -> str:
    if Ellipsis not in kinds:
        return f"{len(kinds)} whole numbers with commas between"
    if typing.get_origin(kinds[0]) is typing.Literal:
        return f"some of {', '.join(typing.get_args(kinds[0]))}, each once, with commas between"
    if kinds[0] is int:
        return "whole numbers with commas between"
    what = "names" if kinds[0] is str else "numbers"
    return f"{what} that differ, with commas between"


def _number(kind: type, limits: Mapping[str, Any]) -> str:
    words = "a whole number" if kind is int else "a number"
    if "multiple_of" in limits:
        words += f", a multiple of {limits['multiple_of']},"
    lower = [("from", "ge"), ("above", "gt")]
    upper = [("to" if "ge" in limits else "up to", "le"), ("below", "lt")]
    parts = [f"{word} {_plain(limits[name])}" for word, name in lower + upper if name in limits]
    return " ".join([words, " and ".join(parts) if "lt" in limits else " ".join(parts)]).strip()
