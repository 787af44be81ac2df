"""Numbers of things, and values, in messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedprune.options.refusal import counted, shown

CODE = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 clients"), (1, "1 client"), (2, "2 clients"), (1200, "1,200 clients")],
)
def test_one_thing_is_not_many(count, said):
    assert counted(count, "client") == said
    has = counted(count, "class has", "classes have")
    assert has == said.replace("clients", "classes have").replace("client", "class has")


def test_a_value_is_shown_in_one_line():
    class Own:
        def __repr__(self) -> str:
            return "two\nlines"

    assert [shown(v) for v in ("a\nb", Own(), 10**5000)] == ["'a\\nb'", "two lines", "<int>"]
    assert len(shown("x" * 10**6)) < 200


def test_clients_rounds_and_hosts_are_counted_by_the_one_function():
    """In what people read no count stands before a noun in the plural, where it may be one."""
    folders = ("fedprune/report", "fedprune/secure", "fedprune/tasks", "server", "simulations")
    wrong = re.compile(r"\{[^{}\"]*\} (clients|rounds|hosts|devices|owners)\b")
    for file in (file for folder in folders for file in (CODE / folder).glob("*.py")):
        for line in file.read_text().splitlines():
            assert 'f"' not in line or not wrong.search(line), (file, line)
