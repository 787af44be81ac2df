"""What the head of a question may say: each reads one value by its name.

All raise ValueError where there is none, or another.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from fedprune.config.kinds import KINDS
from fedprune.runtime.json_text import number_within, text_of, whole_number
from fedprune.selection.regrowth import GROWN

count_in = partial(whole_number, most=2**31 - 1)
"""A whole number, such as a round; rounds are counted in int32 elsewhere."""

rank_in = partial(whole_number, most=10**5)
"""A rank of factors."""

amount_in = partial(number_within, most=sys.float_info.max)
"""A finite number, 0 or more."""

share_in = partial(number_within, most=1.0)
"""A number from 0 to 1."""


def kind_in(head: Mapping[str, Any], name: str) -> str:
    """The kind of a question, in `KINDS`."""
    kind = text_of(head, name)
    if kind not in KINDS:
        raise ValueError(f"kind: no such question, {kind[:100]!r}")
    return kind


def grow_in(head: Mapping[str, Any], name: str) -> str:
    """By what clients grow weights, in `GROWN`."""
    grow = text_of(head, name)
    if grow not in GROWN:
        raise ValueError(f"grow: nothing to grow by, {grow[:100]!r}")
    return grow


def part_in(head: Mapping[str, Any], name: str) -> str:
    """Which held-out part is asked about; "" for none."""
    part = text_of(head, name)
    if part not in ("", "validation", "test"):
        raise ValueError("part: neither validation nor test")
    return part


def flag_in(head: Mapping[str, Any], name: str) -> bool:
    """True or false."""
    if not isinstance(head.get(name), bool):
        raise ValueError(f"{name} is neither true nor false")
    return bool(head[name])


def share_or_none_in(head: Mapping[str, Any], name: str) -> float | None:
    """A number from 0 to 1, or None where the head says null."""
    return None if head.get(name, "") is None else share_in(head, name)
