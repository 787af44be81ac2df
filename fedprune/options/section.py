"""Options: a section is a frozen set of them, declared in the package where they act.

A configuration is all sections together (`fedprune.config.RunConfig`), so what takes a section
takes a configuration too; and a section can be made by itself, to use a function without a run.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

BY_TASK = "by task"
"""What ``--help`` shows where the task sets the default; by itself a section needs the value."""

Count = Annotated[int, Field(ge=1, le=10**9)]


class Section(BaseModel):
    """Options of one package.

    Raises:
        pydantic.ValidationError: an unknown key, a value of another type or out of range; one that
            a task or another option sets by default is missing.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, validate_default=True
    )


def option(group: str, text: str, default: Any, **limits: Any) -> Any:
    """An option of a section.

    Args:
        group: where ``--help`` shows it.
        text: what it is, with what it is by default where that depends on others.
        default: its value where nothing is said.
        limits: as of pydantic's Field: ge, gt, le, lt, multiple_of.
    """
    return Field(default, description=text, json_schema_extra={"group": group}, **limits)
