"""A method is one file: nothing but the table knows its name."""

import re
from pathlib import Path

import pytest

import fedprune
from fedprune.methods.catalog import FOLLOWING, METHODS, RIDERS, method_options_of
from fedprune.options.refusal import ConfigError
from tests.runs import tiny

CORE = Path(fedprune.__file__).parent
PUBLISHED = sorted(METHODS.keys() - FOLLOWING.keys())


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_but_the_table_of_methods_knows_a_published_method(name):
    """So whatever it imports was there before it, and was not edited for it."""
    own = {CORE / "methods" / f"{name}.py", CORE / "methods" / "catalog.py"}
    others = [p for p in CORE.rglob("*.py") if p not in own]
    word = re.compile(rf"\b{name}\b", re.IGNORECASE)
    assert len(others) > 200
    assert [p.name for p in others if word.search(p.read_text())] == []


def test_names_of_methods_and_riders_are_apart():
    """Their memories lie beside each other."""
    assert not METHODS.keys() & RIDERS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_where_it_is_from(name):
    assert METHODS[name].summary
    assert METHODS[name].source
    assert all(field.description for field in METHODS[name].options.model_fields.values())


@pytest.mark.parametrize(
    ("method", "key", "says"),
    [
        ("fedrts", "gama", "no such option of fedrts; nearest: gamma; allowed: exchange, gamma"),
        ("heterofl", "tier", "no such option of heterofl; nearest: tiers; allowed: tiers"),
        ("regrow", "tiers", "no such option of regrow; allowed: none, it has no options"),
    ],
)
def test_a_misspelt_option_of_a_method_gets_the_nearest(method, key, says):
    given = {"schedule": "regrow"} if method in ("fedrts", "regrow") else {}
    with pytest.raises(ConfigError, match=says):
        method_options_of(tiny(method=method, method_options={key: "1"}, **given))
