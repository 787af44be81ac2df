"""`fedprune new`: what it writes, and what it refuses. That it runs: tests/engines/flower."""

import tomllib

import pytest

from fedprune.commands.main import main
from fedprune.commands.new import STARTER
from fedprune.config import RunConfig
from fedprune.config.toml_text import FLOWERS_OWN


def test_an_app_is_the_starter_under_the_folder_s_name(tmp_path, capsys):
    assert main(["new", str(tmp_path / "made" / "My-App.2")]) == 0
    made = tmp_path / "made" / "My-App.2"
    assert "python -m my_app_2.simulate" in capsys.readouterr().out
    for path in STARTER.glob("*.py"):
        text = (made / "my_app_2" / path.name).read_text()
        assert "starter" not in text
        assert text.replace("my_app_2.", "fedprune.starter.") == path.read_text()
    app = tomllib.loads((made / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"]["clientapp"] == "my_app_2.client_app:app"
    known = {*FLOWERS_OWN, *(key.replace("_", "-") for key in RunConfig.model_fields)}
    assert app["config"].keys() <= known


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch", "torch is a package that is installed"),
        ("json", "json is a package that is installed"),
        ("1st", "no name of a Python package"),
        ("class", "no name of a Python package"),
        ("...", "no name of a Python package"),
        ("there", "something is there"),
        ("file", "something is there"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_written(name, words, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "own.py").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["new", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert (said.count("\n"), words in said) == (1, True)
    assert sorted(tmp_path.rglob("*")) == before
