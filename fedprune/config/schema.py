"""One schema for the TOML file, the command line and Flower's run config.

`RunConfig(...)` is always complete: what the user leaves out is filled from the task's defaults
and from a few rules. It remembers which keys were given, because what followed from them follows
again when one of them is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from fedprune.config.allowed import check_keys, no_such_key, refused, unreadable
from fedprune.config.defaults import beside_noise, completed
from fedprune.config.rules import check_noise, check_options
from fedprune.config.sections import AllOptions
from fedprune.options.option import may_be_none
from fedprune.options.refusal import ConfigError
from fedprune.options.values import in_pythons_types, parsed, replaced
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
        given = in_pythons_types(given)
        try:
            check_keys(type(self), given)  # what completes it relies on the types
            BaseModel.__init__(self, **given)
        except ValidationError as error:
            raise refused(error.errors()[0], type(self).model_fields) from None
        except ConfigError:
            raise
        except OSError as error:
            raise ConfigError(unreadable(error, given)) from None
        except (ValueError, ImportError) as error:  # from a plug-in's file
            raise ConfigError(str(error)) from None

    @model_validator(mode="wrap")
    @classmethod
    def _complete(  # takes the place of a section's
        cls, given: dict[str, Any], complete: ModelWrapValidatorHandler[RunConfig]
    ) -> RunConfig:
        left_out = {key for key, v in given.items() if v is None and key in cls.model_fields}
        left_out = {key for key in left_out if may_be_none(cls.model_fields[key])}
        given = {key: v for key, v in given.items() if key not in left_out}
        return with_given(complete(completed(given)), given)

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        check_options(self)
        if self.dp != "none" and self.dp_noise is None:
            from fedprune.config.planned import noise_of_budget

            # Not known before all else is; the model is frozen for everybody else.
            with put_back():  # the accountant's package is told to be quiet
                self.__dict__["dp_noise"] = noise_of_budget(self)
        self.__dict__.update(beside_noise(self))
        check_noise(self)
        return self

    @property
    def streamed(self) -> bool:
        """Whether one block of the model at a time is to be in memory."""
        from fedprune.config.streamed import is_to_stream

        return is_to_stream(self)

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


def with_given(config: RunConfig, given: Iterable[str]) -> RunConfig:
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
    for key, value in given.items():
        if key.replace("-", "_") not in fields:
            raise no_such_key(key, value, fields, dashed="_" not in key)
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


_WANTED = ("init", "teacher", "reduce", "reconstruct", "rewind", "quantise_by")
"""Keys that a run is made for: refused beside another value, and never left out."""


def _spelled(keys: Iterable[str]) -> str:
    return ", ".join(sorted(key.replace("_", "-") for key in keys))
