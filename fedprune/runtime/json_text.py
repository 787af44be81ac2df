"""JSON that others wrote: how long and how deep it may be is bounded before it is read.

Everything here raises ValueError, whatever the text is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

LONGEST_TEXT = 2**24
"""Bytes of a text of JSON: heads name every tensor of a model, edits every unit of it."""

MOST_ITEMS = 2**20
"""Values in a text of JSON; as Python's objects they are twenty times what they are as text."""


def read_json(data: bytes | memoryview | str, most: int = LONGEST_TEXT) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is too long or too deep, of too many values, no JSON, or it names something
            twice. Nothing else is raised, whatever the text is.
    """
    if len(data) > most:
        raise ValueError(f"a text of {len(data)} bytes; allowed: {most}")
    text = data if isinstance(data, str) else bytes(data).decode()
    items = sum(map(text.count, ",[{"))
    if items > MOST_ITEMS:
        raise ValueError(f"a text of {items} values; allowed: {MOST_ITEMS}")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("a text that is nested too deeply") from None


def read_object(data: bytes | memoryview | str, most: int = LONGEST_TEXT) -> dict[str, Any]:
    """The same, of a text that is an object.

    Raises:
        ValueError: as for `read_json`, or it is something else.
    """
    found = read_json(data, most)
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__}, expected an object")
    return found


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that occurs twice")
    return found
