"""Every recipe is a configuration; that it runs and reaches its sparsity the gallery shows."""

import tomllib
from pathlib import Path

import pytest

from fedprune.config import configure, from_toml
from fedprune.methods.catalog import check_method

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "simulations" / "recipes").rglob("*.toml"))
"""On the default task; in ``papers`` as near to a paper's setting as the tasks here come."""


def test_there_are_recipes():
    assert len(RECIPES) >= 8


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_opens_with_its_command_and_configures(path):
    first = path.read_text().splitlines()[0]
    assert first == f"# python simulations/run.py --config {path.relative_to(ROOT).as_posix()}"
    config = configure({k.replace("-", "_"): v for k, v in from_toml(path.read_text()).items()})
    check_method(config)
    for key, value in tomllib.loads(path.read_text()).items():
        held = getattr(config, key.replace("-", "_"))
        assert held == (tuple(value) if isinstance(value, list) else value)
