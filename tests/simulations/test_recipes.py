"""Every recipe is a configuration that runs; none of them is the default under another name."""

import tomllib
from pathlib import Path

import pytest

from fedprune import RunConfig, federate
from fedprune.config import configure, from_toml

RECIPES = sorted((Path(__file__).parents[2] / "simulations" / "recipes").glob("*.toml"))
SMALL = {
    "task": "digits",
    "engine": "inline",
    "clients": 3,
    "cohort": 2,
    "rounds": 8,
    "local_steps": 1,
    "score_steps": 1,
}


def recipe(path: Path, **changes: object) -> RunConfig:
    given = {key.replace("-", "_"): value for key, value in from_toml(path.read_text()).items()}
    return configure({**given, **changes})


def test_there_are_recipes():
    assert len(RECIPES) >= 8


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_and_configures(path: Path):
    first = path.read_text().splitlines()[0]
    assert first == f"# python simulations/run.py --config simulations/recipes/{path.name}"
    config = recipe(path)
    for key, value in tomllib.loads(path.read_text()).items():
        held = getattr(config, key.replace("-", "_"))
        assert held == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reaches_its_sparsity(path: Path):
    config = recipe(path, **SMALL)
    result = federate(config)
    assert result.summary["failures"] == 0
    assert result.summary["reached"]
    # The pattern n:m leaves the last group of a row that is not a multiple of m a little denser,
    # and the convolution of one channel dense.
    near = 1e-2 if config.unit == "n:m" else 1e-3
    assert result.summary["sparsity"] == pytest.approx(config.sparsity, abs=near)
