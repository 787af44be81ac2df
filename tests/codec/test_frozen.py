from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedprune.codec.frozen import put_together, taken_apart


@dataclass(frozen=True)
class Inner:
    name: str
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Outer:
    numbers: tuple[float, ...]
    who: frozenset[int]
    by: dict[int, Inner]
    text: bytes = b""
    maybe: Inner | None = None
    often: int | None = None
    done: bool = False
    maps: dict[str, dict[int, Tensor]] = field(default_factory=dict)


floats, whole = st.floats(width=32), st.integers(-(2**62), 2**62)
tensors = st.lists(floats, max_size=4).map(torch.tensor)
named = st.dictionaries(st.text(max_size=3), tensors, max_size=3)
inner = st.builds(Inner, st.text(max_size=5), named)
outer = st.builds(
    Outer,
    st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
    st.frozensets(st.integers(0, 9)),
    st.dictionaries(st.integers(0, 9), inner, max_size=3),
    st.binary(max_size=5),
    st.none() | inner,
    st.none() | st.integers(0, 2**62),
    st.booleans(),
    st.dictionaries(st.text(max_size=2), st.dictionaries(whole, tensors, max_size=2)),
)


def told(value: Any) -> Any:
    """The value with tensors as their bytes, to compare."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return [(k, told(v)) for k, v in value.items()]
    return {n: told(v) for n, v in vars(value).items()} if hasattr(value, "__dict__") else value


@given(outer)
def test_a_value_comes_back_bit_for_bit_and_in_order(value):
    found: dict[str, Tensor] = {}
    text = taken_apart(value, Outer, found)
    back = put_together(Outer, text, found)
    assert told(back) == told(value)
    owned = {t.data_ptr() for t in found.values() if t.numel()}
    assert len(owned) == sum(bool(t.numel()) for t in found.values()), "memory of its own each"


@pytest.mark.parametrize("hint", [complex, set[int], list[int]])
def test_a_type_that_cannot_be_kept_is_an_error(hint):
    with pytest.raises(TypeError, match="no way to keep"):
        taken_apart((1, "a"), hint, {})


@pytest.mark.parametrize("text", [{}, {"numbers": 3}, {"other": 1}, None, {"by": [[1, {}]]}])
def test_what_is_of_another_type_is_an_error(text):
    with pytest.raises((KeyError, TypeError, ValueError)):
        put_together(Outer, text, {})
