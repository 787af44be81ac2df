"""JSON that others wrote: how long and how deep it may be is bounded before it is read.

Everything here raises ValueError, whatever the text is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_TEXT = 2**24
"""Bytes of a text of JSON: heads name every tensor of a model, edits every unit of it."""

MOST_ITEMS = 2**20
"""Values in a text of JSON; as Python's objects they are twenty times what they are as text."""

MOST_TENSORS = 2**15
"""Tensors of a file; PyTorch takes a kilobyte for an empty one."""


def read_json(data: bytes | memoryview | str, most: int = LONGEST_TEXT) -> Any:
    """What a text of JSON says.

    It is not too long or too deep, nor of too many values, and names nothing twice. Nothing but
    ValueError is raised, whatever the text is.
    """
    if len(data) > most:
        raise ValueError(f"a text of {len(data)} bytes; allowed: {most}")
    text = data if isinstance(data, str) else bytes(data).decode()
    items = sum(map(text.count, ",[{"))
    if items > MOST_ITEMS:
        raise ValueError(f"a text of {items} values; allowed: {MOST_ITEMS}")
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("a text that is nested too deeply") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that occurs twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
"""Made once: heads are short, and to make it takes as long as to read one."""


def read_object(data: bytes | memoryview | str, most: int = LONGEST_TEXT) -> dict[str, Any]:
    """The same, of a text that is an object."""
    found = read_json(data, most)
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__}, expected an object")
    return found


def number_at(head: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number of an object, also NaN and infinity; no whole one that no float holds."""
    found = head.get(name, default)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{name} is no number")
    try:
        return float(found)
    except OverflowError:
        raise ValueError(f"{name} is larger than any float") from None


def number_within(head: Mapping[str, Any], name: str, most: float) -> float:
    """A number of an object, from 0 to `most`."""
    found = number_at(head, name)
    if not 0 <= found <= most:
        raise ValueError(f"{name} is not from 0 to {most:g}")
    return found


def whole_number(head: Mapping[str, Any], name: str, most: int = 2**63 - 1) -> int:
    """A whole number of an object, from 0 to `most`."""
    found = head.get(name)
    if type(found) is not int or not 0 <= found <= most:
        raise ValueError(f"{name} is no whole number from 0 to {most}")
    return found


def text_of(head: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A text of an object."""
    found = head.get(name, default)
    if not isinstance(found, str):
        raise ValueError(f"{name} is no text")
    return found


def texts_of(head: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of texts of an object, none of which is there twice."""
    found = head.get(name)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name} is no list of texts")
    if len(set(found)) < len(found):
        raise ValueError(f"{name} has a text twice")
    return tuple(found)
