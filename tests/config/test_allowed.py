"""Whatever a key refuses, from wherever it comes, is one line that says what is allowed."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from fedprune.commands.arguments import run_asked_for
from fedprune.config import (
    RunConfig,
    configure,
    from_flower,
    from_toml,
    overridden,
)
from fedprune.options.refusal import ConfigError

KEYS = RunConfig.model_fields
LINE = re.compile(r"[a-z0-9-]+=.*: .+; allowed: .+")

TEXTS = ["4.5", "yes", "", " ", ",", "a,,b", "a,a", "-1", "0", "nan", "-inf", "1e400", "9" * 5000]
TEXTS += ["1_000", "١٢", "none", "a=1,a=2", "=1", "x\ny", "\0", "\ud800", "[[", "{a"]
WIRED: list[Any] = [4.5, True, -1, 0, 10**18, 1e308, float("nan"), float("inf"), -0.0]
FILED: list[Any] = [
    ["a", "a"],
    ["", ""],
    [1, 1],
    [],
    {},
    {"a": "x"},
    {"": 0.5},
    {"a": float("nan")},
]
OWN: list[Any] = [None, b"x", object(), 10**30, 10**5000, [None], {1: 2}, {"a"}, len, 2j, ("a", 1)]
OWN += [Path("x"), np.ones((2, 2))]


def lines(key: str, value: Any) -> list[str]:
    """What refuses a value of a key, from Python, TOML, Flower and the command line."""
    ways: list[Any] = [lambda: RunConfig(**{key: value}), lambda: configure({key: value})]
    if not any(value is own for own in OWN) and value != "\ud800":
        ways += [lambda: configure(from_toml(tomli_w.dumps({key: value})))]
    if isinstance(value, str | float | int):
        ways += [lambda: overridden(*from_flower({key: value}))]
    if (
        isinstance(value, str)
        and value in ("4.5", "yes", "a,,b", "\0")
        and key not in ("layers", "ranges", "method_options")
    ):
        ways += [lambda: run_asked_for([f"--{key.replace('_', '-')}={value}"])]
    out = []
    for way in ways:
        try:
            way()
        except ConfigError as refusal:
            out.append(str(refusal))
    return out


@pytest.mark.sampled(50)
@pytest.mark.parametrize("key", KEYS)
def test_a_refusal_is_one_line_that_says_what_is_allowed(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in [*TEXTS, *WIRED, *FILED, *OWN]:
        found = lines(key, value)
        assert all(LINE.fullmatch(line) for line in found), (value, found)


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_no_kind_is_refused_and_what_is_said_to_be_allowed_is(key):
    """The bounds in a message are those at which pydantic itself begins to refuse."""
    (line,) = set(lines(key, OWN[2]))
    takes = line.rpartition("; allowed: ")[2]
    for bound in re.findall(r"(?:from|to) (-?[\d.]+)", takes):
        for refusal in lines(key, float(bound) if "a number" in takes else int(bound)):
            assert not re.search(r": (not )?(above|below) -?[\d.]+; allowed", refusal)
    for word, step in [("from", -1), ("to", 1)]:
        for bound in re.findall(rf"{word} (-?\d+)\b(?!\.)", takes):
            assert lines(key, int(bound) + step)
    if typing.get_origin(KEYS[key].annotation) is typing.Literal:
        assert takes.split(", ") == list(typing.get_args(KEYS[key].annotation))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"rounds": 4.5}, "rounds=4.5: not a whole number; allowed: a whole number from 1"),
        ({"agreement": 2}, "agreement=2: neither true nor false; allowed: true, false"),
        ({"engine": "rya"}, "engine='rya': no such engine (did you mean ray?); allowed: auto"),
        ({"class_names": "a,,b"}, "class-names=('a', '', 'b'): an entry is empty; allowed: names"),
        ({"exclude": ["a", "a"]}, "exclude=('a', 'a'): an entry is there twice; allowed: names"),
        ({"sparsity": float("nan")}, "sparsity=nan: not a finite number; allowed: a number from 0"),
        ({"width": 24}, "width=24: not a multiple of 16; allowed: a whole number, a multiple of"),
        ({"seed": 10**30}, "seed=1000000000000000000000000000000: above 9223372036854775807 in"),
        ({"rounds": 10**5000}, "rounds=<int>: above 1000000000; allowed: a whole number from 1"),
        ({"init": "x" * 300}, f"init='{'x' * 300}': file name too long; allowed: a path that can"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(given, line):
    with pytest.raises(ConfigError) as refusal:
        configure(given)
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize("text", [f"seed = {'9' * 5000}", "a = " + "[" * 9000, "a = 1\na = 2"])
def test_what_is_no_toml_is_one_line(text):
    with pytest.raises(ConfigError, match=r"^config: not TOML: .*; allowed: flat keys"):
        from_toml(text)
