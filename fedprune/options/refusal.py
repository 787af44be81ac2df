"""Refusals: one line that names the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

Conflict = tuple[str, bool, str, str]
"""Key, whether it is wrong, why, and what is allowed."""


class ConfigError(ValueError):
    """Something given that cannot be. One line: key=value: what is wrong; allowed: what is.

    Attributes:
        key: what was given, as on the command line; "" where that is not known.
        allowed: what is allowed instead.
        idle: whether nothing would read it, so that it may as well be left out.
    """

    def __init__(self, text: str, key: str = "", allowed: str = "", *, idle: bool = False) -> None:
        super().__init__(text)
        self.key, self.allowed, self.idle = key, allowed, idle


def shown(value: Any) -> str:
    """A value as a message shows it: in one line, and not the whole of what is very long."""
    try:
        text = " ".join(repr(value).split()) if not isinstance(value, str) else repr(value)
    except Exception:  # an integer of thousands of digits, an object with a repr of its own
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 500 else f"{text[:100]}..."


def named(item: tuple[str, Any], table: Iterable[str], noun: str = "") -> None:
    """Refuse a value that is not a name in the table, of which each is a `noun`, or the key.

    Raises:
        ValueError: with the nearest name and all that are allowed.
    """
    (key, value), names = item, list(table)
    if value in names:
        return
    near = get_close_matches(shown(value).strip("'"), names, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    allowed = ", ".join(names)
    raise ConfigError(
        f"{key}={shown(value)}: no such {noun or key}{hint}; allowed: {allowed}", key, allowed
    )


OUT = "leave it out"
"""What is allowed in place of a value that nothing would read."""


def refusal(key: str, value: Any, reason: str, allowed: str, *, idle: bool = False) -> ConfigError:
    """A `ConfigError` of the usual form; `idle` too where it ends in `OUT`."""
    text = f"{key}={shown(value)}: {reason}; allowed: {allowed}"
    return ConfigError(text, key, allowed, idle=idle or allowed.endswith(OUT))


def refuse(key: str, value: Any, reason: str, allowed: str) -> NoReturn:
    """Raise a `ConfigError` of the usual form."""
    raise refusal(key, value, reason, allowed)


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things: 1 client, 2 clients, 1,200 clients.

    `plural` is of others than one, where it is not the noun and an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


class Refused(ValueError):
    """An answer that came and does not count; carries the field that is wrong.

    `told` is what may be said of it even where clients keep reasons to themselves: words that the
    configuration alone decides; "" for none.
    """

    def __init__(self, field_: str, reason: str, told: str = "") -> None:
        super().__init__(reason)
        self.field, self.told = field_, told
