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
from fedprune.options.name_table import NameTable
from fedprune.options.refusal import OUT, Refusal, named, refusal

BY_TASK = "by task"
"""What ``--help`` shows where the task sets the default; by itself a section needs the value."""

Count = Annotated[int, Field(ge=1, le=10**9)]


@dataclass(frozen=True)
class OptionFacts:
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


class Elsewhere(AttributeError):
    """An option of another section, or a default that only a task sets."""


class Following:
    """Values of options: those given, and what follows from them, each when it is asked for.

    An option that is asked for while it is being derived is None.

    Raises:
        Elsewhere: it, or what it is derived from, is not among these.
    """

    def __init__(
        self, options: Mapping[str, KnownOption], given: Mapping[str, Any], usual: Mapping[str, Any]
    ) -> None:
        self.__dict__.update(given)
        self._options, self._usual = options, usual

    def __getattr__(self, key: str) -> Any:
        """The value of an option that has none yet; from then on it is an attribute."""
        option = self.__dict__["_options"].get(key)
        if option is None:
            raise Elsewhere(key)
        self.__dict__[key] = None
        try:
            value = self.__dict__[key] = self._following(key, option)
        except BaseException:
            del self.__dict__[key]
            raise
        return value

    def usual(self, key: str, *otherwise: Any) -> Any:
        """The default that the task or the score sets, else the one given here."""
        if key not in self._usual and not otherwise:
            raise Elsewhere(key)
        return self._usual.get(key, *otherwise)

    def _following(self, key: str, option: KnownOption) -> Any:
        if unmet(option.says.when, self):
            return option.unread
        derived = option.says.derived
        return derived(self) if derived else self._usual.get(key, option.default)


@functools.cache
def _plain_defaults(schema: type[BaseModel]) -> Mapping[str, Any]:
    """The defaults of the options that are read beside any values, and derived from none."""
    options = options_of(schema).items()
    return {k: o.default for k, o in options if o.says.when == ({},) and not o.says.derived}


def with_derived(
    schema: type[BaseModel], given: Mapping[str, Any], usual: Mapping[str, Any]
) -> dict[str, Any]:
    """The values given and those that follow from them.

    Args:
        schema: the section.
        given: values, of the right types.
        usual: defaults that the task or the score sets.
    """
    options = options_of(schema)
    plain = {key: usual.get(key, default) for key, default in _plain_defaults(schema).items()}
    out = {**plain, **given}
    values = Following(options, out, usual)
    for key in options:
        if key not in out:
            try:
                out[key] = getattr(values, key)
            except Elsewhere:
                continue
    return out


def names_in(schema: type[BaseModel], plugin: str) -> dict[str, Mapping[str, Any]]:
    """The table that an option's names are in, by key, with those that a plug-in adds."""
    tables = {key: option.says.names for key, option in options_of(schema).items()}
    return {
        key: table(plugin) if callable(table) else table
        for key, table in tables.items()
        if table is not None
    }


def check_names(schema: type[BaseModel], values: Any) -> None:
    """Refuse names that are in no table.

    Raises:
        Refusal: the first of them, with the nearest name and all that are allowed.
    """
    for key, table in names_in(schema, getattr(values, "plugin", "")).items():
        if isinstance(value := getattr(values, key), str):
            named((key.replace("_", "-"), value), table)


def unread(schema: type[BaseModel], values: Any) -> Iterator[Refusal]:
    """The refusal of every option that has a value and that nothing reads beside the others'."""
    for key, option in options_of(schema).items():
        value, when = getattr(values, key), option.says.when
        if value != option.unread and unmet(when, values):
            allowed = f"{OUT}, or {condition_in_words(when)}"
            yield refusal(option.flag, value, why_unread(when, values), allowed, idle=True)


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
        return with_derived(cls, given, {}) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _fits(self) -> Any:
        check_names(type(self), self)
        for found in unread(type(self), self):
            raise found
        return self
