"""One schema for the TOML file, the command line and Flower's run config.

`RunConfig(...)` is always complete: what the user leaves out is filled from the task's defaults
and from a few rules. It remembers which keys were given, because what followed from them follows
again when one of them is changed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from fedprune.config.allowed import as_error, check_keys, refused, unreadable
from fedprune.config.defaults import beside_noise, completed
from fedprune.config.rules import check_options
from fedprune.config.sections import AllOptions
from fedprune.options.plugins import with_code_of
from fedprune.options.refusal import ConfigError, Refusal
from fedprune.options.section import may_be_none
from fedprune.options.values import parsed, replaced
from fedprune.runtime.process import put_back


class RunConfig(AllOptions):
    """A complete configuration: every key has its value, and the values fit together.

    `model_fields_set` names the keys that were given; the others followed from them. None for a
    key that may be left out is as if it were not given.

    Raises:
        ConfigError: one line that names the key, the value and what is allowed.
    """

    model_config = ConfigDict(validate_default=False)  # `with_derived` gives every value

    def __init__(self, /, **given: Any) -> None:
        """See the class. Values have their types: text that says a number is for `configure`."""
        try:
            check_keys(type(self), given)  # what completes it relies on the types
            BaseModel.__init__(self, **given)
        except ValidationError as error:
            refusal = refused(error.errors()[0], type(self).model_fields)
            raise as_error(refusal) from None
        except Refusal as refusal:
            raise as_error(refusal) from None
        except OSError as error:
            raise ConfigError(unreadable(error, given)) from None
        except (ValueError, ImportError) as error:  # from a plug-in's file
            raise ConfigError(str(error)) from None

    @model_validator(mode="wrap")
    @classmethod
    def _complete(  # takes the place of a section's
        cls, given: dict[str, Any], complete: ModelWrapValidatorHandler[RunConfig]
    ) -> RunConfig:
        given = {key: v for key, v in given.items() if v is not None or not _optional(key)}
        return _remembering(complete(completed(given)), given)

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        check_options(self)
        if self.dp != "none" and self.dp_noise is None:
            from fedprune.config.planned import noise_of_budget

            # Not known before all else is; the model is frozen for everybody else.
            with put_back():  # the accountant's package is told to be quiet
                self.__dict__["dp_noise"] = noise_of_budget(self)
        self.__dict__.update(beside_noise(self))
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The keys that were given, with their values."""
        return {key: value for key, value in self if key in self.model_fields_set}

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> RunConfig:
        """The configuration with other values: what followed from the old ones follows again.

        Args:
            update: keys to change; None takes back what was given.
            deep: as in pydantic, without an update.

        Raises:
            ConfigError: the values do not fit together.
        """
        if not update:
            return super().model_copy(deep=deep)
        given = {**self.given, **flat(update)}
        return configure({key: value for key, value in given.items() if value is not None})


def _optional(key: str) -> bool:
    field = RunConfig.model_fields.get(key)
    return field is not None and may_be_none(field)


def _remembering(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """The configuration, with these as the keys that were given."""
    config.__pydantic_fields_set__.intersection_update(given)
    return config


def with_values(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration but for these values: nothing follows from them, nothing is checked.

    For arms, which keep the plan of another run.
    """
    return BaseModel.model_copy(config, update=changes)


def configure(given: Mapping[str, Any]) -> RunConfig:
    """A complete configuration from the keys the user gave (``local-steps`` or ``local_steps``).

    Raises:
        ConfigError: one line that names the key, the value and what is allowed.
    """
    return RunConfig(**_read(given))


def flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keys as Python spells them."""
    return {str(key).replace("-", "_"): value for key, value in given.items()}


def _read(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values as they are in Python, as far as they can be read."""
    fields = RunConfig.model_fields
    return {
        key: parsed(key, value, fields[key].annotation) if key in fields else value
        for key, value in flat(given).items()
    }


def overridden(
    given: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[RunConfig, tuple[str, ...]]:
    """A configuration with other values, and what of the keys given has no meaning beside them.

    Args:
        given: keys of a file, or of another configuration.
        changes: keys that win over them. One takes the place of what says the same in another
            way, such as a threshold of a sparsity; what nothing reads beside it is left out.

    Returns:
        The configuration, and a line for each key that was left out.

    Raises:
        ConfigError: the values do not fit together.
    """
    given, changes = _read(given), _read(changes)
    changed = {k: v for k, v in changes.items() if v != given.get(k)}
    new = {k: v for k, v in changed.items() if v is not None}
    by = {key: [k for k in new if key in replaced(given, {k: new[k]})] for key in given}
    gone = {key: f"not beside {_spelled(by[key])}" for key in sorted(replaced(given, new))}
    first: ConfigError | None = None
    while True:
        kept = {key: value for key, value in given.items() if key not in gone}
        try:
            config = configure({**kept, **changes})
        except ConfigError as refusal:
            key = refusal.key.replace("-", "_")
            idle = refusal.idle and key not in _WANTED
            first = first or refusal
            if not idle or not changed or key not in kept.keys() - changes.keys():
                raise first from None
            gone[key] = str(refusal).partition(": ")[2].rpartition("; allowed: ")[0]
            continue
        lines = [f"{_spelled([k])}={given[k]!r} is left out: {why}" for k, why in gone.items()]
        return config, tuple(lines)


_WANTED = ("init", "teacher", "reduce", "reconstruct", "rewind")
"""Keys that a run is made for: refused beside another value, and never left out."""


def _spelled(keys: Iterable[str]) -> str:
    return ", ".join(sorted(key.replace("_", "-") for key in keys))


_HEAD = "# What was given: --config reads these keys, and all others follow from them again."
_FOLLOWED = "# What followed from it: read back to compare, and as a record of what ran."


def to_toml(config: RunConfig) -> str:
    """The configuration as TOML, keys spelled as on the command line.

    First the keys that were given, then, in the table ``followed``, those that followed from them.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    said = config.model_fields_set - {key for key, value in values.items() if value == ""}
    given, followed = (
        {key.replace("_", "-"): v for key, v in values.items() if (key in said) is wanted}
        for wanted in (True, False)
    )
    rest = tomli_w.dumps({"followed": followed})
    return f"{_HEAD}\n{tomli_w.dumps(given)}\n{_FOLLOWED}\n{rest}"


def from_toml(text: str) -> dict[str, Any]:
    """The keys that a TOML document gives; what followed from them when it was written is not.

    Raises:
        ConfigError: it is not TOML.
    """
    document = _document(text)
    document.pop("followed", None)
    return document


def all_keys(text: str) -> dict[str, Any]:
    """Every key of a TOML document as Python spells it, given or followed.

    Raises:
        ConfigError: it is not TOML.
    """
    document = _document(text)
    followed = document.pop("followed", {})
    return flat({**followed, **document})


def recorded(
    text: str,
    plugin: str | None = None,
    where: object = "a file",
    paths: Mapping[str, str] | None = None,
) -> RunConfig:
    """The configuration as it was when `to_toml` wrote it: nothing follows again.

    Args:
        text: of the document.
        plugin: the caller's plug-in, "" for none, where the text is a file's: that runs no code of
            its own choice. None: the text is the caller's own.
        where: the file, for messages.
        paths: by option, where its file is on this machine, if elsewhere.

    Raises:
        ConfigError: it is not TOML, no configuration, or names a plug-in that was not given.
    """
    keys = _of_caller(flat(all_keys(text)), plugin, where) | dict(paths or {})
    return _remembering(configure(keys), flat(from_toml(text)))


def _of_caller(keys: dict[str, Any], plugin: str | None, where: object) -> dict[str, Any]:
    """The keys with the caller's plug-in, see `recorded`."""
    try:
        return keys if plugin is None else with_code_of(plugin, keys, where)
    except ValueError as error:
        raise ConfigError(str(error), "plugin") from None


_LONGEST = 2**20
"""Characters of a configuration: some thousands, and the names of classes."""

_DOTS = 2**26
"""The sum over lines of their dots, squared: so much work are the parts of a key to tomllib."""


def _document(text: str) -> dict[str, Any]:
    if len(text) > _LONGEST or sum(line.count(".") ** 2 for line in text.split("\n")) > _DOTS:
        raise ConfigError("config: too long to be one; allowed: flat keys, as in --help")
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise ConfigError(f"config: not TOML: {error}; allowed: flat keys, as in --help") from None
    if not isinstance(found.get("followed", {}), dict):
        raise ConfigError("followed: no such key; allowed: the table that a run wrote")
    return found


def given_in(text: str, plugin: str | None = None, where: object = "a file") -> dict[str, Any]:
    """As `from_toml`; of a document with every key and no word of what followed, those that count.

    PreviousRun versions wrote such: there, what would follow with the same value is taken to have
    followed.

    Args:
        text: of the document.
        plugin: as for `recorded`.
        where: the file, for messages.

    Raises:
        ConfigError: it is not TOML, or names a plug-in that was not given.
    """
    given = _of_caller(flat(from_toml(text)), plugin, where)
    if "followed" in _document(text) or not {"task", "clip", "wire", "verbose"} <= given.keys():
        return given
    whole = configure(given)
    # The noise last: to see whether it follows takes longest.
    for key in [*(k for k in reversed(RunConfig.model_fields) if k != "dp_noise"), "dp_noise"]:
        fewer = {k: value for k, value in given.items() if k != key}
        if key in given and _follows(fewer, whole):
            given = fewer
    return given


def _follows(given: Mapping[str, Any], whole: RunConfig) -> bool:
    """Whether a configuration follows from these keys."""
    try:
        return configure(given) == whole
    except ConfigError:
        return False


def from_flower(run_config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys given in Flower's flat run config: those of ``toml``, and those beside it, not "".

    A whole configuration may come as one TOML document under ``toml``; the other keys win over it.

    Raises:
        ConfigError: the document is not TOML.
    """
    beside = {key: value for key, value in run_config.items() if value != "" and key != "toml"}
    return given_in(str(run_config.get("toml", ""))), beside
