import math
import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from fedprune import TASKS, ConfigError, RunConfig
from fedprune.config import configure, from_flower, from_toml, overridden, to_toml
from fedprune.options.conditions import unmet
from fedprune.options.option import declared
from fedprune.scores.catalog import SCORES, scores_of
from fedprune.tasks.catalog import tasks_of
from tests.choices import values_of
from tests.runs import tiny

DIGITS = {"task": "digits"}


def refused(given_: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as e:
        configure(given_)
    line = str(e.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("make", "key", "near"),
    [
        (configure, "sparcity", "sparsity"),
        (configure, "local-step", "local-steps"),
        (configure, "local_step", "local_steps"),
        (lambda keys: RunConfig(**keys), "minclients", "min_clients"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_as_it_was_written(make, key, near):
    with pytest.raises(ConfigError, match=f"^{key}=1: no such key; nearest: {near}; .*--help"):
        make({key: 1})


WRONG = [
    ({"clients": "many"}, "'many'", "not a whole number; allowed: a whole number from "),
    ({"clients": 2.5}, "2.5", "not a whole number; allowed: a whole number from "),
    ({"clients": True}, "True", "not a whole number; allowed: a whole number from "),
    ({"cohort": None}, "None", "not a whole number; allowed: a whole number from "),
    ({"sparsity": "0,8"}, "'0,8'", "not a number; allowed: a number"),
    ({"max_norm": "large"}, "'large'", "not a number; allowed: a number, or auto"),
    ({"unit_shape": 2}, "2", "not a list; allowed: "),
    ({"layers": ["a", 1]}, "['a', 1]", "not a table; allowed: PATTERN=NUMBER"),
    ({"agreement": "yes"}, "'yes'", "neither true nor false; allowed: true, false"),
    ({"baselines": ["dense", "sparse"]}, "'sparse'", "allowed: some of dense, random"),
    ({"clients": 0}, "0", "below 1; allowed: "),
    ({"sparsity": 1.0}, "1.0", "not below 1; allowed: "),
    ({"sparsity": -0.1}, "-0.1", "below 0; allowed: "),
    ({"threshold": math.inf}, "inf", "finite"),
    ({"lr": 0}, "0", "not above 0; allowed: "),
    ({"gpus": 2.0}, "2.0", "above 1; allowed: "),
    ({"task": ["digits"]}, "['digits']", "not text; allowed: shakespeare, "),
    ({"task": "fashion"}, "'fashion'", "(did you mean fashion-mnist?); allowed: shakespeare"),
    ({"score": "taylr"}, "'taylr'", "(did you mean taylor?); allowed: taylor, taylor_signed"),
    ({"lr_schedule": "step"}, "'step'", "allowed: constant, linear, cosine"),
    ({**DIGITS, "split": "natural"}, "'natural'", "allowed: iid, dirichlet, shards"),
]


@pytest.mark.parametrize(("keys", "value", "allowed"), WRONG, ids=str)
def test_what_cannot_run_is_refused_with_key_value_and_what_is_allowed(keys, value, allowed):
    line = refused(keys)
    assert line.startswith(f"{[*keys][-1].replace('_', '-')}={value}: ")
    assert allowed in line


def test_both_spellings_of_a_key_are_one_key():
    assert configure({"local-steps": 3}) == configure({"local_steps": 3})


@pytest.mark.parametrize("task", TASKS)
def test_a_task_sets_defaults_and_the_user_has_the_last_word(task):
    config = configure({"task": task})
    for key, value in TASKS[task].defaults.items():
        assert getattr(config, key) == value
    given = {"lr": 0.125, "rounds": 7, "cohort": 2, "local_steps": 3}
    changed = configure({"task": task, **given})
    assert {key: getattr(changed, key) for key in given} == given


@pytest.mark.parametrize("task", TASKS)
def test_a_complete_configuration_leaves_nothing_open(task):
    """But what is read beside other values only, or follows from none and need not be said."""
    config = configure(
        {"task": task, "data": "somewhere"} if TASKS[task].folder else {"task": task}
    )
    for key, field in RunConfig.model_fields.items():
        if vars(config)[key] in (None, "", "by task"):
            assert unmet(declared(field).when, config) or declared(field).derived is None, key


BESIDE = [
    ({"split": "dirichlet", "task": "digits"}, {"alpha": 0.5}),
    ({"optimizer": "sgd"}, {"momentum": 0.9}),
    ({"unit": "n:m"}, {"unit_shape": (2, 4), "sparsity": 0.5, "pool": None}),
    ({"unit": "n:m", "unit_shape": (1, 4)}, {"sparsity": 0.75}),
    ({"unit": "block"}, {"unit_shape": (4, 1), "pool": "mean"}),
    ({"unit": "row"}, {"unit_shape": None, "pool": "mean"}),
    ({"schedule": "regrow"}, {"regrow": 0.3, "sparsity": 0.8}),
    ({"combine": "trimmed-mean"}, {"trim": 0.1}),
    ({"masks": "union"}, {"average": "l0-mean"}),
    ({"robust": "median"}, {"weighting": "equal", "byzantine": None, "min_clients": 1}),
    ({"robust": "multi-krum", "task": "digits"}, {"byzantine": 3, "min_clients": 9}),
    ({"robust": "nearest-geometric-median", "task": "digits"}, {"byzantine": 3, "min_clients": 7}),
    ({"robust": "trimmed-mean", "byzantine": 2}, {"byzantine": 2, "min_clients": 5}),
    ({"robust": "multi-krum", "min_clients": 10, "task": "digits"}, {"min_clients": 10}),
    ({"masks": "intersection", "average": "fedavg"}, {"average": "fedavg"}),
    ({"l1": 0.1}, {"shrinkage": "proximal"}),
    ({"distil": 0.5}, {"temperature": 2.0}),
    ({"distil_hidden": 0.5}, {"temperature": None}),
    ({"group_lasso": 0.1, "unit": "row"}, {"shrinkage": "proximal"}),
    ({"l1": 0.1, "shrinkage": "gradient"}, {"shrinkage": "gradient"}),
    ({"score": "movement"}, {"score_during": "tune"}),
    ({"score": "snip"}, {"warmup": 0, "schedule": "one-shot", "end": 1}),
    ({"score": "sparsegpt"}, {"scope": "layer"}),
    ({"score": "sparsegpt", "unit": "n:m"}, {"scope": "global"}),
    ({"score": "perturbation"}, {"probes": 64}),
    ({"score": "block_influence"}, {"unit": "layer", "pool": "mean"}),
    ({"target_bytes": 10**5}, {"sparsity": None, "schedule": "cubic"}),
    ({"target_flops": 0.3}, {"sparsity": None, "schedule": "cubic"}),
    ({"threshold": 0.1}, {"sparsity": None, "schedule": "one-shot"}),
]


@pytest.mark.parametrize(("given_", "want"), BESIDE, ids=str)
def test_what_belongs_to_a_choice_comes_with_it(given_, want):
    values = vars(configure(given_))
    assert {key: values[key] for key in want} == want


SIZES = [
    # rounds, given, warmup, end
    (24, {}, 8, 18),
    (12, {}, 4, 9),
    (3, {}, 1, 2),
    (2, {}, 0, 1),
    (1, {}, 0, 1),
    (48, {}, 16, 37),
    (24, {"warmup": 0}, 0, 16),
    (24, {"warmup": 23}, 23, 24),
    (24, {"end": 24}, 8, 24),
    (24, {"schedule": "one-shot"}, 8, 9),
    (24, {"threshold": 0.1}, 8, 9),
]


@pytest.mark.parametrize(("rounds", "given_", "warmup", "end"), SIZES)
def test_warm_up_and_end_scale_with_the_rounds(rounds, given_, warmup, end):
    config = configure({"rounds": rounds, **given_})
    assert (config.warmup, config.end) == (warmup, end)


@pytest.mark.parametrize(("clients", "cohort", "hosts"), [(1, 1, 1), (3, 3, 3), (20, 10, 8)])
def test_cohort_and_hosts_are_no_more_than_there_are(clients, cohort, hosts):
    config = configure({"task": "digits", "clients": clients})
    assert (config.cohort, config.hosts) == (cohort, hosts)


def test_epochs_take_the_place_of_steps():
    assert configure({"local_epochs": 2}).local_steps == 0
    assert configure({"local_epochs": 0}).local_steps == configure({}).local_steps > 0


def test_a_dense_run_needs_no_round_to_prune_in():
    assert configure({"sparsity": 0, "rounds": 5, "warmup": 5}).warmup == 5


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        tiny().seed = 4


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Some keys with values that they can have, numbers of any size, and names of any letters."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    chosen = draw(st.lists(st.sampled_from(list(RunConfig.model_fields)), max_size=2))
    keys = {key: draw(st.sampled_from(values_of(key))) for key in chosen}
    keys |= {"exclude": draw(st.lists(text, max_size=3)), "out": draw(text)}
    keys |= {"lr": draw(st.floats(1e-12, 1e3)), "seed": draw(st.integers(0, 2**40))}
    tables = st.dictionaries(text, st.floats(0.01, 1), min_size=1)
    more = draw(
        st.one_of(
            st.builds(lambda table: {"scope": "patterns", "layers": table}, tables),
            st.builds(lambda at: {"threshold": at}, st.floats(-1e9, 1e9)),
            st.builds(lambda part: {"sparsity": part}, st.floats(0, 1, exclude_max=True)),
        )
    )
    return {**keys, **more}


@pytest.mark.slow
@given(configurations())
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_its_toml_gives_the_configuration_again(keys):
    try:
        config = configure(keys)
    except ConfigError:
        reject()
    text = to_toml(config)
    assert configure(from_toml(text)) == config
    assert all("_" not in key for key in tomllib.loads(text))


def test_tables_are_no_keys():
    line = refused(from_toml("[tuning]\nlr = 0.1\n"))
    assert line == "tuning: no table is read; allowed: flat keys, as in --help-all"


def test_flowers_run_config_gives_what_is_not_empty():
    given_ = {"clients": 7, "sparsity": 0.5, "task": "", "baselines": "dense,random", "out": ""}
    given_ |= {"exclude": "head.*, conv.*", "toml": 'task = "digits"\nclients = 9\nseed = 5\n'}
    config = overridden(*from_flower(given_))[0]
    assert (config.clients, config.sparsity, config.task, config.seed) == (7, 0.5, "digits", 5)
    assert config.baselines == ("dense", "random")
    assert config.exclude == ("head.*", "conv.*")


def test_flowers_run_config_carries_a_whole_configuration():
    config = tiny(baselines=("dense",), exclude=("a*", "b,c"))
    assert overridden(*from_flower({"toml": to_toml(config), "clients": ""}))[0] == config
    changed, _ = overridden(*from_flower({"toml": to_toml(config), "min-clients": 2}))
    assert changed == config.model_copy(update={"min_clients": 2})


OWN = """
from __future__ import annotations

from dataclasses import dataclass, replace

from fedprune import SCORES as ours, TASKS as theirs, Score


@dataclass
class Own:
    weight: float = 0.5


SCORES = {
    "mine": replace(ours["magnitude"], summary="mine"),
    "taylor": ours["gradient"],
    "whole": replace(ours["magnitude"], finalise=lambda evidence: evidence.weights),
}
DEFAULTS = {"rounds": 6, "warmup": 3, "lr": Own().weight}
TASKS = {"new-digits": replace(theirs["digits"], defaults=DEFAULTS)}
"""


def test_a_plugin_adds_scores_and_tasks(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    plugin = str(tmp_path / "own.py")
    config = configure({"plugin": plugin, "task": "new-digits", "score": "mine"})
    assert (config.rounds, config.warmup, config.lr) == (6, 3, 0.5)
    assert config.cohort == 10, "what the task leaves out has a default too"
    assert list(scores_of(plugin)) == [*SCORES, "mine", "whole"]
    assert scores_of(plugin)["mine"].apart, "the same function, tensor by tensor"
    assert not scores_of(plugin)["whole"].apart, "of another function nobody said so"
    assert scores_of(plugin)["taylor"] is SCORES["gradient"], "a built-in one is replaced"
    assert list(tasks_of(plugin)) == [*TASKS, "new-digits"]
    assert "mine" not in scores_of("")
    assert "score='mine'" in refused({"score": "mine"})
    (tmp_path / "own.py").rename(tmp_path / "own.txt")
    for path in (tmp_path, tmp_path / "own.txt", tmp_path / "nowhere.py"):
        assert "allowed: path of a .py file" in refused({"plugin": str(path)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:\n", "SyntaxError"),
        ("import no_such_thing\n", "ModuleNotFound"),
        ("1/0", "ZeroDi"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("SCORES = 3", "SCORES is something else"),
        ("TASKS = {'t': None}", "TASKS is something else"),
    ],
)
def test_a_plugin_that_does_not_run_is_refused(text, reason, tmp_path):
    (tmp_path / "own.py").write_text(text)
    line = refused({"plugin": str(tmp_path / "own.py")})
    assert line.startswith(f"plugin='{tmp_path / 'own.py'}': {reason}")
