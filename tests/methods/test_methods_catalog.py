"""A method is one file: nothing but the table knows its name."""

import ast
from pathlib import Path

import pytest

import fedprune
from fedprune.config import configure
from fedprune.methods.catalog import FOLLOWING, METHODS, RIDERS, method_options_of
from fedprune.options.refusal import ConfigError
from tests.runs import tiny

CORE = Path(fedprune.__file__).parent
PUBLISHED = sorted(METHODS.keys() - FOLLOWING.keys())


def words_of_code(path: Path) -> set[str]:
    """Names and whole texts in a module; what its docstrings cite is not among them."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return texts | {n.id for n in nodes if isinstance(n, ast.Name)}


@pytest.mark.slow
def test_nothing_but_the_table_of_methods_knows_a_published_method():
    """So whatever it imports was there before it, and was not edited for it."""
    seen = {p: words_of_code(p) for p in CORE.rglob("*.py") if p != CORE / "methods" / "catalog.py"}
    assert len(seen) > 200
    known = [(n, p.name) for n in PUBLISHED for p, words in seen.items() if n in words]
    assert known == []


def test_every_method_says_what_it_is_and_where_it_is_from():
    assert not METHODS.keys() & RIDERS.keys(), "their memories lie beside each other"
    for name, method in METHODS.items():
        assert method.summary, name
        assert method.source, name
        assert all(field.description for field in method.options.model_fields.values()), name


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


def test_a_list_of_one_number_may_stand_bare():
    given = [tiny(method="heterofl", method_options={"tiers": x}) for x in (1, "1", (1.0,))]
    assert {method_options_of(config).tiers for config in given} == {(1.0,)}


def test_what_makes_a_method_follows_from_its_name_and_is_refused_otherwise():
    config = configure({"task": "digits", "method": "ssfl", "score_examples": 3})
    assert (config.combine, config.warmup, config.sparsity) == ("mean-absolute", 0, 0.5)
    assert config.score_examples == 3, "what is usual is not fixed"
    assert config.given.keys() == {"task", "method", "score_examples"}
    with pytest.raises(ConfigError, match="combine='sum': method ssfl sets it; allowed: 'mean-ab"):
        tiny(method="ssfl", combine="sum")
