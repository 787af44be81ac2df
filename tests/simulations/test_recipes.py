"""Every recipe is a configuration; that it runs and reaches its sparsity the gallery shows."""

import tomllib
from pathlib import Path

import pytest

from fedprune.config import configure, from_toml
from fedprune.methods.catalog import FOLLOWING, METHODS, check_method

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "simulations" / "recipes").rglob("*.toml"))
assert len(RECIPES) >= 8
"""On the default task; in ``papers`` as near to a paper's setting as the tasks here come."""


NAMED = sorted(METHODS.keys() - FOLLOWING.keys())


@pytest.mark.parametrize("name", NAMED)
def test_a_method_has_a_recipe_on_the_default_task_and_one_near_its_paper(name):
    """Of the default task, nothing of which another task would be told."""
    text = (ROOT / "simulations" / "recipes" / f"{name}.toml").read_text()
    config = configure({k.replace("-", "_"): v for k, v in from_toml(text).items()})
    usual = configure({})
    assert config.method == name
    assert (config.task, config.model, config.clients) == (usual.task, usual.model, usual.clients)
    assert (ROOT / "simulations" / "recipes" / "papers" / f"{name}.toml").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_opens_with_its_command_and_configures(path):
    first = path.read_text().splitlines()[0]
    assert first == f"# python simulations/run.py --config {path.relative_to(ROOT).as_posix()}"
    config = configure({k.replace("-", "_"): v for k, v in from_toml(path.read_text()).items()})
    check_method(config)
    for key, value in tomllib.loads(path.read_text()).items():
        held = getattr(config, key.replace("-", "_"))
        assert held == (tuple(value) if isinstance(value, list) else value)
