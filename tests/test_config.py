import math
import tomllib
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from fedprune import TASKS, ConfigError, RunConfig
from fedprune.config import configure, from_flower, from_toml, overridden, to_toml
from fedprune.learning.optimizers import OPTIMIZERS
from fedprune.scores.catalog import SCORES, scores_of
from fedprune.scores.combine import COMBINES, NORMALISE
from fedprune.selection.schedules import SCHEDULES
from fedprune.selection.scopes import SCOPES
from fedprune.selection.units import UNITS
from fedprune.tasks.catalog import tasks_of
from tests.runs import tiny

DIGITS = {"task": "digits"}


def refused(given_: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as e:
        configure(given_)
    line = str(e.value)
    assert "\n" not in line
    return line


UNKNOWN = [
    ("sparcity", "sparsity"),
    ("local-step", "local-steps"),
    ("local_step", "local_steps"),
    ("cohorts", "cohort"),
]


@pytest.mark.parametrize(("key", "near"), UNKNOWN)
def test_an_unknown_key_is_named_with_the_nearest(key, near):
    line = refused({key: 1})
    assert line.startswith(f"{key}=1: no such key; nearest: {near}; ")
    assert "--help" in line


@pytest.mark.parametrize(
    ("key", "near"), [("local_step", "local_steps"), ("minclients", "min_clients")]
)
def test_python_is_told_names_as_it_writes_them(key, near):
    with pytest.raises(ConfigError, match=f"^{key}=1: no such key; nearest: {near}; "):
        RunConfig(**{key: 1})


TYPES = [
    ({"clients": "many"}, "clients='many'", "not a whole number; allowed: a whole number from "),
    ({"clients": "five"}, "clients='five'", "not a whole number; allowed: a whole number from "),
    ({"clients": 2.5}, "clients=2.5", "not a whole number; allowed: a whole number from "),
    ({"clients": True}, "clients=True", "not a whole number; allowed: a whole number from "),
    ({"clients": [5]}, "clients=[5]", "not a whole number; allowed: a whole number from "),
    ({"rounds": "20.5"}, "rounds=20.5", "not a whole number; allowed: a whole number from "),
    ({"warmup": ""}, "warmup=''", "not a whole number; allowed: a whole number from "),
    ({"cohort": None}, "cohort=None", "not a whole number; allowed: a whole number from "),
    ({"lr": "fast"}, "lr='fast'", "not a number; allowed: a number"),
    ({"sparsity": "0,8"}, "sparsity='0,8'", "not a number; allowed: a number"),
    ({"max_norm": "large"}, "max-norm='large'", "not a number; allowed: a number, or auto"),
    ({"score": 7}, "score=7", "not text; allowed: taylor"),
    ({"unit_shape": 2}, "unit-shape=2", "not a list; allowed: "),
    ({"layers": ["a", 1]}, "layers=['a', 1]", "not a table; allowed: PATTERN=NUMBER"),
    ({"agreement": "yes"}, "agreement='yes'", "neither true nor false; allowed: true, false"),
    ({"exclude": 7}, "exclude=7", "not a list; allowed: "),
    ({"baselines": ["dense", "sparse"]}, "baselines='sparse'", "allowed: some of dense, random"),
    ({"engine": "spark"}, "engine='spark'", "allowed: auto, ray, inline, flower"),
    ({"lr_schedule": "step"}, "lr-schedule='step'", "allowed: constant, linear, cosine"),
]
RANGES = [
    ({"clients": 0}, "clients=0", "below 1; allowed: "),
    ({"rounds": 0}, "rounds=0", "below 1; allowed: "),
    ({"sparsity": 1.0}, "sparsity=1.0", "not below 1; allowed: "),
    ({"sparsity": -0.1}, "sparsity=-0.1", "below 0; allowed: "),
    ({"sparsity": math.nan}, "sparsity=nan", "finite"),
    ({"threshold": math.inf}, "threshold=inf", "finite"),
    ({"lr": 0}, "lr=0", "not above 0; allowed: "),
    ({"momentum": 1.0, "optimizer": "sgd"}, "momentum=1.0", "not below 1; allowed: "),
    ({"alpha": 0, "split": "dirichlet"}, "alpha=0", "not above 0; allowed: "),
    ({"seed": -1}, "seed=-1", "below 0; allowed: "),
    ({"floor": -1}, "floor=-1", "below 0; allowed: "),
    ({"timeout": 0}, "timeout=0", "not above 0; allowed: "),
    ({"gpus": 2.0}, "gpus=2.0", "above 1; allowed: "),
    ({"warmup": -1}, "warmup=-1", "below 0; allowed: "),
]
NAMES = [
    ({"task": "fashion"}, "task='fashion'", "(did you mean fashion-mnist?); allowed: shakespeare"),
    ({"task": ["digits"]}, "task=['digits']", "not text; allowed: shakespeare, "),
    ({"score": "taylr"}, "score='taylr'", "(did you mean taylor?); allowed: taylor, taylor_signed"),
    ({"scope": "rows"}, "scope='rows'", "(did you mean row?); allowed: global, layer, row"),
    ({"schedule": "qubic"}, "schedule='qubic'", "(did you mean cubic?); allowed: one-shot"),
    ({"optimizer": "lion"}, "optimizer='lion'", "allowed: sgd, adam, adamw"),
    ({"wire": "int8"}, "wire='int8'", "allowed: fp32, fp16, bf16"),
    ({"uplink": "int2"}, "uplink='int2'", "allowed: fp32, fp16, bf16, int8, int4"),
    ({"split": "naturel"}, "split='naturel'", "(did you mean natural?); allowed: natural, iid"),
    (DIGITS | {"split": "natural"}, "split='natural'", "allowed: iid, dirichlet, shards"),
    ({"plugin": "nowhere.py"}, "plugin='nowhere.py'", "allowed: path of a .py file"),
]


@pytest.mark.parametrize(("keys", "named", "allowed"), TYPES + RANGES + NAMES, ids=str)
def test_what_cannot_run_is_refused_with_key_value_and_what_is_allowed(keys, named, allowed):
    line = refused(keys)
    assert line.startswith(f"{named}: ")
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


# Keys that only mean something beside one value of another key, or that have no default at all.
OPEN = {"threshold", "target_bytes", "target_flops", "alpha", "momentum", "regrow", "rewind"}
OPEN |= {"unit_shape", "pool", "probes", "trim", "vote_scope", "average", "length"}
OPEN |= {"encoding", "text_column", "label_column", "target_column", "client_column"}
OPEN |= {"small_owners", "server_momentum", "server_decay", "server_floor"}
OPEN |= {"data", "plugin", "ray_address", "out", "init", "uplink"}
OPEN |= {"tolerance", "candidates", "adaptive", "blend_grid", "moving_decay"}
OPEN |= {"quantise_by", "reconstruct", "shrinkage", "depth", "width", "temperature", "teacher"}
OPEN |= {"reduce_round", "reduce_within", "slice_part", "rank_by", "rank_energy", "rank_budget"}
OPEN |= {"rank_tolerance", "score_examples"}
OPEN |= {"epsilon", "delta", "dp_clip", "dp_noise", "dp_score_clip", "dp_score_noise", "dp_rate"}
OPEN |= {"dp_metric_clip", "dp_metric_noise", "response", "secure_neighbours", "secure_dropout"}
OPEN |= {"secure_bits", "secure_minimum", "byzantine", "max_norm", "strikes"}
OPEN |= {"rank", "lora_alpha", "adapter_mean", "deadline", "profiles"}


@pytest.mark.parametrize("task", TASKS)
def test_a_complete_configuration_leaves_nothing_open(task):
    given_ = {"data": "somewhere"} if TASKS[task].folder else {}
    values = configure({"task": task, **given_}).model_dump()
    empty = {key for key, value in values.items() if value in (None, "")}
    assert empty <= OPEN
    assert "by task" not in values.values()


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


def test_a_threshold_takes_the_place_of_a_sparsity():
    config = configure({"threshold": 0.0})
    assert (config.sparsity, config.schedule) == (None, "one-shot")
    assert configure({}).sparsity == 0.8


def test_a_dense_run_needs_no_round_to_prune_in():
    assert configure({"sparsity": 0, "rounds": 5, "warmup": 5}).warmup == 5


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        tiny().seed = 4


def text() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    clients = draw(st.integers(1, 50))
    keys: dict[str, Any] = {"clients": clients, "cohort": draw(st.integers(1, clients))}
    task = draw(st.sampled_from(list(TASKS)))
    keys |= {"task": task, "split": draw(st.sampled_from(list(TASKS[task].splits)))}
    keys["seed"] = draw(st.integers(0, 2**40))
    keys["score"] = draw(st.sampled_from(list(SCORES)))
    keys["optimizer"] = draw(st.sampled_from(list(OPTIMIZERS)))
    if draw(st.booleans()):
        keys["sparsity"] = draw(st.floats(0, 1, exclude_max=True))
        keys["scope"] = draw(st.sampled_from(list(SCOPES)))
        if keys["scope"] == "patterns":
            keys["layers"] = draw(st.dictionaries(text(), st.floats(0.01, 1), min_size=1))
        keys["schedule"] = draw(st.sampled_from(list(SCHEDULES)))
    else:
        keys["threshold"] = draw(st.floats(-1e9, 1e9))
    keys["lr"] = draw(st.floats(1e-12, 1e3))
    if draw(st.booleans()):
        keys["combine"] = draw(st.sampled_from(list(COMBINES)))
        keys["normalise"] = draw(st.sampled_from(list(NORMALISE)))
    if draw(st.booleans()):
        keys["unit"] = draw(st.sampled_from(list(UNITS)))
    keys["exclude"] = draw(st.lists(text(), max_size=3))
    keys["out"] = draw(text())
    if draw(st.booleans()):
        keys["local-epochs"] = draw(st.integers(1, 5))
    arms = ["dense"] if "threshold" in keys else ["dense", "random"]
    keys["baselines"] = draw(st.permutations(arms))[: draw(st.integers(0, 2))]
    return keys


@pytest.mark.slow
@given(configurations())
def test_its_toml_gives_the_configuration_again(keys):
    try:
        config = configure(keys)
    except ConfigError:
        reject()  # some scores and scopes exclude each other; most draws do not
    text = to_toml(config)
    assert configure(from_toml(text)) == config
    assert all("_" not in key for key in tomllib.loads(text))


def test_what_is_not_toml_is_refused():
    with pytest.raises(ConfigError, match=r"config: not TOML: .*; allowed: flat keys") as e:
        from_toml("clients = ")
    assert "\n" not in str(e.value)


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


@pytest.mark.parametrize("name", ["", "own.txt"])
def test_a_plugin_that_is_no_python_file_is_refused(name, tmp_path):
    path = tmp_path / name
    if name:
        path.write_text("")
    assert "allowed: path of a .py file" in refused({"plugin": str(path)})


def test_a_plugin_without_tables_adds_nothing(tmp_path):
    (tmp_path / "bare.py").write_text("")
    assert configure({"plugin": str(tmp_path / "bare.py")}).task == "shakespeare"
