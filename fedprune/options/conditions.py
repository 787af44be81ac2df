"""Beside which values of other options one is read, and what values it has to have beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedprune.options.refusal import OUT, Conflict


@dataclass(frozen=True)
class Not:
    """Any value but this one; of a tuple, but these."""

    value: Any


When = Mapping[str, Any] | tuple[Mapping[str, Any], ...]
"""Values that other options have to have, all of them; of a tuple of such mappings one is enough.

A tuple of values: one of them. Of an option that holds a list, each value is one that is in it.
"""


def unmet(when: When, values: Any) -> list[str]:
    """The options that keep another from being read; none where it is read.

    What the condition says of options that are not among the values is taken to hold.
    """
    found = []
    for every in _ways(when):
        for key, wanted in every.items():
            value = getattr(values, key, _NOWHERE)
            if value is not _NOWHERE and not permitted(value, wanted):
                found.append(key)
                break
        else:
            return []
    return found


def why_unread(when: When, values: Any) -> str:
    """In words, what keeps an option from being read: ``optimizer is adam``."""
    keys = dict.fromkeys(unmet(when, values))
    return " and ".join(f"{_flag(key)[2:]} is {_shown(getattr(values, key))}" for key in keys)


def in_words(when: When) -> str:
    """The condition as options that one gives: ``--optimizer sgd``."""
    return " or ".join(
        " and ".join(_wanted(key, value) for key, value in every.items()) for every in _ways(when)
    )


def permitted(value: Any, wanted: Any) -> bool:
    """Whether a value is the one that is wanted, or of a tuple one of them; see `Not`."""
    if isinstance(wanted, Not):
        return not permitted(value, wanted.value)
    if value == wanted or not isinstance(wanted, tuple):
        return value == wanted or (isinstance(value, tuple) and wanted in value)
    return any(permitted(value, one) for one in wanted)


def only(values: Any, holds: bool, why: str, **wanted: Any) -> list[Conflict]:
    """A possible conflict for each option that has to have a value, or one of some.

    Args:
        values: an object with options as attributes.
        holds: whether they have to.
        why: the reason.
        wanted: values, see `permitted`; of None and what is empty: it has to be left out.
    """
    return [
        (
            key.replace("_", "-"),
            holds and not permitted(getattr(values, key), value),
            why,
            _allowed(key, value),
        )
        for key, value in wanted.items()
    ]


def _allowed(key: str, wanted: Any) -> str:
    if wanted in (None, "", ()):
        return OUT
    if isinstance(wanted, Not):
        return f"another {_flag(key)}"
    return ", ".join(map(_shown, wanted if isinstance(wanted, tuple) else (wanted,)))


def _ways(when: When) -> Iterable[Mapping[str, Any]]:
    return when if isinstance(when, tuple) else (when,)


_NOWHERE = object()
"""Stands for the value of an option of another section."""


def _wanted(key: str, wanted: Any) -> str:
    if not isinstance(wanted, Not):
        names = wanted if isinstance(wanted, tuple) else (wanted,)
        return f"{_flag(key)} {' or '.join(map(_shown, names))}"
    if wanted.value in (None, "", (), "none"):
        return _flag(key)
    names = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
    others = f"{_flag(key)} other than {' or '.join(map(_shown, names))}"
    return f"{_flag(key)} above 0" if wanted.value == 0 else others


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _shown(value: Any) -> str:
    """A value as one gives it on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if value is None or value == "":
        return "not given"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
