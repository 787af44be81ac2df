"""Options: a section is a frozen set of them, declared in the package where they act.

A configuration is all sections together (`fedprune.config.RunConfig`), so what takes a section
takes a configuration too; and a section can be made by itself, to use a function without a run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model, model_validator

from fedprune.options.conditions import in_words as condition_in_words
from fedprune.options.conditions import unmet, why_unread
from fedprune.options.option import KnownOption, options_of
from fedprune.options.refusal import OUT, ConfigError, named, refusal
from fedprune.options.values import in_pythons_types


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
            if unmet(option.says.when, self):
                value = option.unread
            elif option.says.derived:
                value = option.says.derived(self)
            else:
                value = self._usual.get(key, option.default)
        except BaseException:
            del self.__dict__[key]
            raise
        self.__dict__[key] = value
        return value

    def usual(self, key: str, *otherwise: Any) -> Any:
        """The default that the task or the score sets, else the one given here."""
        if key not in self._usual and not otherwise:
            raise Elsewhere(key)
        return self._usual.get(key, *otherwise)


@functools.cache
def _plain_defaults(schema: type[BaseModel]) -> Mapping[str, Any]:
    """The defaults of the options that are read beside any values, and derived from none."""
    options = options_of(schema).items()
    return {k: o.default for k, o in options if o.says.when == ({},) and not o.says.derived}


def with_derived(
    schema: type[BaseModel], given: Mapping[str, Any], usual: Mapping[str, Any]
) -> dict[str, Any]:
    """The values given, of the right types, and those of a section that follow from them.

    `usual` are defaults that the task or the score sets.
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
        ConfigError: the first of them, with the nearest name and all that are allowed.
    """
    for key, table in names_in(schema, getattr(values, "plugin", "")).items():
        if isinstance(value := getattr(values, key), str):
            named((key.replace("_", "-"), value), table)


def unread(schema: type[BaseModel], values: Any) -> Iterator[ConfigError]:
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
        given = in_pythons_types(given)
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
