"""What follows from other values follows again when these are changed, from wherever."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tomli_w

from fedprune.commands.arguments import run_asked_for
from fedprune.config import (
    RunConfig,
    configure,
    from_flower,
    from_toml,
    given_in,
    overridden,
    recorded,
    to_toml,
)
from fedprune.engines.flower.strategy import _changed
from fedprune.methods.catalog import check_method
from fedprune.options.refusal import ConfigError
from fedprune.options.values import as_text, replaced
from tests.choices import value_of
from tests.options.test_values import outcome

Keys = dict[str, Any]

BASES: list[Keys] = [
    {"task": "digits", "clients": 7, "rounds": 30, "warmup": 4, "sparsity": 0.6},
    {"task": "digits", "optimizer": "sgd", "momentum": 0.8, "split": "dirichlet", "alpha": 0.2},
    {"task": "digits", "unit": "n:m", "unit_shape": (1, 4), "end": 12},
    {"task": "digits", "reduce": ("low-rank",), "rank_energy": 0.9, "secure": "secagg"},
    {"score": "movement", "distil": 0.5, "temperature": 3.0, "baselines": ("dense",)},
]


def checked(given: Any) -> RunConfig:
    """The configuration, its method held against the rest as on the command line."""
    config = configure(given)
    check_method(config)
    return config


@pytest.mark.sampled(2)
@pytest.mark.parametrize("base", BASES, ids=str)
def test_a_key_over_a_run_s_file_is_a_key_over_what_was_given(base, tmp_path, capsys):
    file = tmp_path / "config.toml"
    file.write_text(to_toml(configure(base)))
    for key in RunConfig.model_fields:
        value = value_of(key)
        text = as_text(value)
        flag = f"--{key.replace('_', '-')}"
        flags = [flag, "*", "0.5"] if isinstance(value, dict) else [f"{flag}={text}"]
        found = outcome(lambda flags=flags: run_asked_for(["--config", str(file), *flags])[0])
        said = re.findall(r"\.toml: ([a-z0-9-]+)=.* is left out: ", capsys.readouterr().err)
        gone = {name.replace("-", "_") for name in said}
        assert gone <= base.keys(), "only what was given can be left out"
        kept = {k: v for k, v in base.items() if k not in gone}
        fresh = outcome(lambda kept=kept, new={key: value}: checked({**kept, **new}))
        if isinstance(found, str) and found != fresh:  # the same, but for what was replaced
            kept = {k: v for k, v in base.items() if k not in replaced(base, {key: value})}
            fresh = outcome(lambda kept=kept, new={key: value}: checked({**kept, **new}))
        assert found == fresh, (key, gone)
        if isinstance(found, RunConfig):
            assert found.given == {**kept, key: vars(found)[key]}, "what followed is not given"


NOISE = {"task": "digits", "dp": "client", "rounds": 8, "clients": 8, "epsilon": 8.0}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("change", [{"epsilon": 2.0}, {"rounds": 5}, {"cohort": 2}], ids=str)
def test_the_noise_of_a_budget_follows_from_everywhere(change, tmp_path):
    base, right = configure(NOISE), configure({**NOISE, **change})
    assert right.dp_noise != base.dp_noise
    ((key, value),) = change.items()
    old = base.model_dump(mode="json", exclude_none=True)  # as earlier versions wrote it
    for text in (to_toml(base), tomli_w.dumps({k.replace("_", "-"): v for k, v in old.items()})):
        (tmp_path / "c.toml").write_text(text)
        line = run_asked_for(["--config", str(tmp_path / "c.toml"), f"--{key}={value}"])[0]
        flower = overridden(*from_flower({"toml": text, key: value}))[0]
        assert line == flower == right
    assert base.model_copy(update=change) == right
    assert _changed(base, None, None, change) == right


def test_a_file_keeps_what_was_given_apart():
    config = configure({"task": "digits", "sparsity": 0.5})
    text = to_toml(config)
    assert from_toml(text) == config.given == {"task": "digits", "sparsity": 0.5}
    again = recorded(text)
    assert again == config
    assert again.given == config.given
    assert given_in(text) == config.given


def test_resume_refuses_what_would_follow_otherwise(tmp_path):
    file, text = tmp_path / "config.toml", to_toml(configure({"task": "digits"}))
    file.write_text(text)
    assert run_asked_for(["--resume", str(tmp_path), "--timeout", "9"])[0].timeout == 9
    file.write_text(re.sub(r"\nend = \d+", "\nend = 16", text))
    with pytest.raises(ConfigError, match=r"^end=\d+: follows from what .* and was 16 when"):
        run_asked_for(["--resume", str(tmp_path)])


def test_an_earlier_run_s_task_gives_way_to_what_is_given(tmp_path):
    (tmp_path / "config.toml").write_text(to_toml(configure({**BASES[1], "clients": 6})))
    config = configure({"init": str(tmp_path), "split": "iid"})
    assert (config.task, config.clients, config.split, config.alpha) == ("digits", 6, "iid", None)
    assert config.model_copy(update={"split": None}).alpha == 0.2
    assert config.given == {"init": str(tmp_path), "split": "iid"}


def test_a_copy_is_checked_and_none_takes_back():
    config = configure({"task": "digits", "momentum": 0.8})
    with pytest.raises(ConfigError, match=r"momentum=0\.8: optimizer is adamw"):
        config.model_copy(update={"optimizer": "adamw"})
    changed = config.model_copy(update={"optimizer": "adamw", "momentum": None})
    assert changed == configure({"task": "digits", "optimizer": "adamw"})


def test_what_takes_a_key_s_place_is_named_and_nothing_else():
    given = {"task": "digits", "model": "mlp"}
    _, told = overridden(given, {"task": "fashion-mnist", "out": "runs/x", "seed": 3})
    assert told == ("model='mlp' is left out: not beside task",)
