"""One value is read one way, whether it comes on the command line, in TOML or from Flower."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from flwr.common.config import parse_config_args

from fedprune.commands.arguments import listing, run_asked_for
from fedprune.config import RunConfig, configure, from_flower, overridden
from fedprune.methods.catalog import check_method
from fedprune.options.refusal import ConfigError
from fedprune.options.values import COLUMNS, for_flower, parsed
from fedprune.records.provenance import as_run_config

KEYS = RunConfig.model_fields


def outcome(make: Any) -> Any:
    """The configuration, or the line that refuses it."""
    try:
        return make()
    except ConfigError as refusal:
        return str(refusal)


def three_ways(keys: dict[str, str], tmp_path: Path) -> list[Any]:
    """What comes of the same texts from the command line, a TOML file and Flower's run config."""
    spelled = {key.replace("_", "-"): text for key, text in keys.items()}
    file = tmp_path / "given.toml"
    file.write_text(tomli_w.dumps(spelled))
    flags = [f"--{key}={text}" for key, text in spelled.items()]
    if tables := spelled.keys() & {
        "layers",
        "ranges",
        "method-options",
    }:  # pairs, on the command line
        flags = [flag for flag in flags if flag[2:].partition("=")[0] not in tables]
        for name in tables:
            for pattern, value in configured_table(spelled[name]).items():
                flags += [f"--{name}", pattern, str(value)]
    text = " ".join(f"{key}={for_flower(value)}" for key, value in spelled.items())
    flower = parse_config_args([text])

    def of_flower() -> RunConfig:
        config = overridden(*from_flower(flower))[0]
        check_method(config)  # as the command line does, and a run before it begins
        return config

    return [
        outcome(lambda: run_asked_for(flags)[0]),
        outcome(lambda: run_asked_for(["--config", str(file)])[0]),
        outcome(of_flower),
    ]


def configured_table(text: str) -> dict[str, Any]:
    found = parsed("", text, dict[str, float])
    assert isinstance(found, dict)
    return found


TEXTS = ["007", "1e3", "1e9", "1.5", "-2", "nan", "False", "none", "a,b"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("text", TEXTS)
def test_every_key_is_read_the_same_from_all_three(text, tmp_path):
    # A plug-in that a file names is refused, whatever it says.
    for key in KEYS.keys() - {"layers", "ranges", "method_options", "out", "plugin"}:
        line, file, flower = three_ways({"task": "digits", key: text}, tmp_path)
        assert line == file == flower, key


@pytest.mark.parametrize(
    ("keys", "want"),
    [
        ({"exclude": "a*, b[0,1].c"}, {"exclude": ("a*", "b[0,1].c")}),
        ({"include": '["x,y", " z "]'}, {"include": ("x,y", " z ")}),
        ({"exclude": ""}, {"exclude": ()}),
        ({"exclude": "[ab]*"}, {"exclude": ("[ab]*",)}),
        ({"scope": "patterns", "layers": "h*=0.5,*=1"}, {"layers": {"h*": 0.5, "*": 1.0}}),
        ({"scope": "patterns", "layers": '{"a,b=c" = 0.5}'}, {"layers": {"a,b=c": 0.5}}),
        ({"seed": "007", "rounds": "1e1"}, {"seed": 7, "rounds": 10}),
        ({"unit": "n:m", "unit_shape": "1,4"}, {"unit_shape": (1, 4)}),
        ({"threshold": "-1e-3"}, {"threshold": -0.001, "sparsity": None}),
        ({"momentum": "none"}, {"momentum": 0.9}),
        ({"agreement": "False"}, {"agreement": False}),
        ({"baselines": "dense, random"}, {"baselines": ("dense", "random")}),
    ],
)
def test_values_mean_what_they_say(keys, want, tmp_path):
    made = three_ways({"task": "digits", **keys}, tmp_path)
    empty = [made[0], made[1]] if "" in keys.values() else made  # to Flower "" is: not given
    for config in empty:
        assert {key: vars(config)[key] for key in want} == want


def test_names_of_columns_stay_text(tmp_path):
    keys = {"task": "text-classification", "data": "x.csv", "model": "llama-char"}
    for text in ("007", "none", "true", "a,b", "[1]"):
        for column in ("text_column", "label_column"):
            assert column in COLUMNS
            for found in three_ways({**keys, column: text}, tmp_path):
                assert isinstance(found, str) or vars(found)[column] == text


def test_no_name_that_none_would_hide_is_called_none():
    for block in listing("").split("\n\n"):
        option, *names = block.splitlines()
        key = option.removeprefix("--").replace("-", "_")
        if key in KEYS and type(None) in getattr(KEYS[key].annotation, "__args__", ()):
            assert "none" not in [name.split()[0] for name in names], key


def test_the_repeat_line_gives_back_what_was_given():
    keys: dict[str, Any] = {"task": "digits", "exclude": ("a,b", "c[0,1]"), "engine": "inline"}
    keys |= {"scope": "patterns", "layers": {'h"*': 0.5, "*": 1.0}, "seed": 3}
    config = configure(keys)
    (text,) = shlex.split(shlex.quote(as_run_config(config)))
    again = overridden(*from_flower(parse_config_args([text])))[0]
    assert again.model_copy(update={"engine": "inline"}) == config


def test_a_value_with_commas_may_stand_behind_its_name():
    for said in (["densities=1.0,0.5"], ["densities", "1.0,0.5"]):
        config, *_ = run_asked_for(["--method", "fedspine", "--method-options", *said])
        assert config.method_options["densities"] == "1.0,0.5", "which the method reads"
