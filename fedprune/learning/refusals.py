"""Choices about how clients learn that contradict each other, or that nothing would read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedprune.naming import Misfit

if TYPE_CHECKING:
    from fedprune.config import RunConfig

_OUT = "leave it out"


def refusals(c: RunConfig) -> list[Misfit]:
    """Every possible misfit of a configuration's learning, with whether it is one."""
    return [*_terms(c), *_rates(c)]


def _terms(c: RunConfig) -> list[Misfit]:
    single = c.unit in {"weight", "n:m"}
    shrunk = c.l1 > 0 or c.group_lasso > 0
    return [
        (
            "group-lasso",
            c.group_lasso > 0 and single,
            f"unit {c.unit} has no groups of weights",
            "--l1, or another --unit",
        ),
        (
            "shrinkage",
            c.shrinkage is not None and not shrunk,
            "neither l1 nor group-lasso is above 0",
            _OUT,
        ),
    ]


def _rates(c: RunConfig) -> list[Misfit]:
    level = c.lr_schedule == "constant"
    return [
        ("lr-rewind", c.lr_rewind and level, "the learning rate is constant", "false"),
        ("lr-rewind", c.lr_rewind and c.sparsity == 0.0, "nothing is pruned", "false"),
    ]
