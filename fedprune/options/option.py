"""An option: its name, type, default and limits, and what it says of itself beside them."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from fedprune.options.conditions import When
from fedprune.options.name_table import NameTable

BY_TASK = "by task"
"""What ``--help`` shows where the task sets the default; by itself a section needs the value."""

Count = Annotated[int, Field(ge=1, le=10**9)]


@dataclass(frozen=True)
class OptionFacts:
    """What an option says of itself beside its name, type, default and limits, see `option`."""

    group: str
    when: When = ({},)
    derived: Callable[[Any], Any] | None = None
    names: Mapping[str, Any] | NameTable | None = None


def option(
    group: str,
    text: str,
    default: Any = None,
    *,
    when: When = ({},),
    derived: Callable[[Any], Any] | None = None,
    names: Mapping[str, Any] | NameTable | None = None,
    **limits: Any,
) -> Any:
    """An option of a section.

    Args:
        group: where ``--help`` shows it.
        text: what it is, with what it is by default where that is derived.
        default: its value where nothing is said and it is read.
        when: values of other options beside which it is read. Beside others it is None, or its
            default where it cannot be None, and any other value is refused.
        derived: its value from the others' (attributes of the argument) where nothing is said.
        names: the table of its names, or that by plug-in.
        limits: as of pydantic's Field: ge, gt, le, lt, multiple_of, strict.
    """
    declaration: Any = {"option": OptionFacts(group, when, derived, names)}
    return Field(default, description=text, json_schema_extra=declaration, **limits)


def declared(field: FieldInfo) -> OptionFacts:
    """What an option says of itself."""
    return typing.cast(OptionFacts, typing.cast(Any, field.json_schema_extra)["option"])


def may_be_none(field: FieldInfo) -> bool:
    """Whether None is a value of the option: then it may be left out."""
    return types.NoneType in typing.get_args(field.annotation)


def unread_value(field: FieldInfo) -> Any:
    """The value of an option that nothing reads."""
    return None if may_be_none(field) else field.default


@dataclass(frozen=True)
class KnownOption:
    """An option as what completes and checks a configuration needs it, some 150 at each one.

    Attributes:
        flag: its name on the command line, without the dashes.
        says: what it says of itself.
        default: its value where it is read and nothing else sets it.
        unread: its value where nothing reads it.
    """

    flag: str
    says: OptionFacts
    default: Any
    unread: Any


@functools.cache
def options_of(schema: type[BaseModel]) -> Mapping[str, KnownOption]:
    """The options of a section, in its order."""
    return {
        key: KnownOption(key.replace("_", "-"), declared(field), field.default, unread_value(field))
        for key, field in schema.model_fields.items()
    }
