"""Options: a section is a frozen set of them, declared in the package where they act.

A configuration is all sections together (`fedprune.config.RunConfig`), so what takes a section
takes a configuration too; and a section can be made by itself, to use a function without a run.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from fedprune.options.conditions import When, unmet, why_unread
from fedprune.options.conditions import in_words as condition_in_words
from fedprune.options.refusal import OUT, Refusal, named, refusal

BY_TASK = "by task"
"""What ``--help`` shows where the task sets the default; by itself a section needs the value."""

Count = Annotated[int, Field(ge=1, le=10**9)]


@dataclass(frozen=True)
class Declared:
    """What an option says of itself beside its name, type, default and limits.

    Attributes:
        group: where ``--help`` shows it.
        when: values of other options beside which it is read; beside others it has no value.
        derived: its value from the others' where it is not given; None: its default.
        names: the table that its value is a name in, with a summary of each; None: any value.
    """

    group: str
    when: When = ({},)
    derived: Callable[[Any], Any] | None = None
    names: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] | None = None


def option(
    group: str,
    text: str,
    default: Any = None,
    *,
    when: When = ({},),
    derived: Callable[[Any], Any] | None = None,
    names: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] | None = None,
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
    declaration: Any = {"option": Declared(group, when, derived, names)}
    return Field(default, description=text, json_schema_extra=declaration, **limits)


def declared(field: FieldInfo) -> Declared:
    """What an option says of itself."""
    return typing.cast(Declared, typing.cast(Any, field.json_schema_extra)["option"])


def may_be_none(field: FieldInfo) -> bool:
    """Whether None is a value of the option: then it may be left out."""
    return types.NoneType in typing.get_args(field.annotation)


def unread_value(field: FieldInfo) -> Any:
    """The value of an option that nothing reads."""
    return None if may_be_none(field) else field.default


class Elsewhere(AttributeError):
    """An option of another section, or a default that only a task sets."""


class Following:
    """Values of options: those given, and what follows from them, each when it is asked for.

    An option that is asked for while it is being derived is None.

    Raises:
        Elsewhere: it, or what it is derived from, is not among these.
    """

    def __init__(
        self, fields: Mapping[str, FieldInfo], given: Mapping[str, Any], usual: Mapping[str, Any]
    ) -> None:
        self._fields, self._usual, self._values = fields, usual, dict(given)

    def __getattr__(self, key: str) -> Any:
        """The value of an option."""
        if key.startswith("_") or key not in self._fields:
            raise Elsewhere(key)
        if key not in self._values:
            self._values[key] = None
            try:
                self._values[key] = self._following(key)
            except BaseException:
                del self._values[key]
                raise
        return self._values[key]

    def usual(self, key: str, *otherwise: Any) -> Any:
        """The default that the task or the score sets, else the one given here."""
        if key not in self._usual and not otherwise:
            raise Elsewhere(key)
        return self._usual.get(key, *otherwise)

    def _following(self, key: str) -> Any:
        field = self._fields[key]
        says = declared(field)
        if unmet(says.when, self):
            return unread_value(field)
        return says.derived(self) if says.derived else self.usual(key, field.default)


def completed(
    fields: Mapping[str, FieldInfo], given: Mapping[str, Any], usual: Mapping[str, Any]
) -> dict[str, Any]:
    """The values given and those that follow from them.

    Args:
        fields: of the section, by option.
        given: values, of the right types.
        usual: defaults that the task or the score sets.
    """
    values, out = Following(fields, given, usual), dict(given)
    for key in fields:
        if key not in out:
            try:
                out[key] = getattr(values, key)
            except Elsewhere:
                continue
    return out


def names_in(fields: Mapping[str, FieldInfo], plugin: str) -> dict[str, Mapping[str, Any]]:
    """The table that an option's names are in, by key, with those that a plug-in adds."""
    tables = {key: declared(field).names for key, field in fields.items()}
    return {
        key: table(plugin) if callable(table) else table
        for key, table in tables.items()
        if table is not None
    }


def check_names(fields: Mapping[str, FieldInfo], values: Any) -> None:
    """Refuse names that are in no table.

    Raises:
        Refusal: the first of them, with the nearest name and all that are allowed.
    """
    for key, table in names_in(fields, getattr(values, "plugin", "")).items():
        if isinstance(value := getattr(values, key), str):
            named((key.replace("_", "-"), value), table)


def unread(fields: Mapping[str, FieldInfo], values: Any) -> Iterator[Refusal]:
    """The refusal of every option that has a value and that nothing reads beside the others'."""
    for key, field in fields.items():
        says, value = declared(field), getattr(values, key)
        if value != unread_value(field) and unmet(says.when, values):
            why, way = why_unread(says.when, values), condition_in_words(says.when)
            yield refusal(key.replace("_", "-"), value, why, f"{OUT}, or {way}", idle=True)


@functools.cache
def types_of(schema: type[BaseModel]) -> type[BaseModel]:
    """The keys and types of a schema alone: without what it fills in and what it checks."""
    fields: dict[str, Any] = {k: (f.annotation, f) for k, f in schema.model_fields.items()}
    config: Any = {**schema.model_config, "validate_default": False}
    return create_model("Types", __config__=config, **fields)


class Section(BaseModel):
    """Options of one package.

    Raises:
        pydantic.ValidationError: an unknown key, a value of another type or out of range, one that
            nothing reads beside the others; one that a task or an option of another section sets
            by default is missing.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, validate_default=True
    )

    def __init__(self, /, **given: Any) -> None:
        """See the class. What completes it relies on the types of what is given."""
        types_of(type(self)).model_validate(given)
        super().__init__(**given)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return completed(cls.model_fields, given, {}) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _fits(self) -> Any:
        check_names(type(self).model_fields, self)
        for found in unread(type(self).model_fields, self):
            raise found
        return self
