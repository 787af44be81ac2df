"""Every recipe is a configuration; that it runs and reaches its sparsity the gallery shows."""

import tomllib
from pathlib import Path

import pytest

from fedprune.config import configure, from_toml

RECIPES = sorted((Path(__file__).parents[2] / "simulations" / "recipes").glob("*.toml"))


def test_there_are_recipes():
    assert len(RECIPES) >= 8


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_and_configures(path):
    first = path.read_text().splitlines()[0]
    assert first == f"# python simulations/run.py --config simulations/recipes/{path.name}"
    config = configure({k.replace("-", "_"): v for k, v in from_toml(path.read_text()).items()})
    for key, value in tomllib.loads(path.read_text()).items():
        held = getattr(config, key.replace("-", "_"))
        assert held == (tuple(value) if isinstance(value, list) else value)
