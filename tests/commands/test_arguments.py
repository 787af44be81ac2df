"""The command line against the schema, without running anything."""

import re

import pytest

from fedprune.commands.arguments import listing, run_asked_for
from fedprune.commands.run_options import SHOWN_FIRST, full_help, run_parser
from fedprune.config import RunConfig, to_toml
from fedprune.options.name_table import NameTable
from fedprune.options.option import declared
from fedprune.options.refusal import ConfigError
from fedprune.records.bound import RESUMABLE
from fedprune.selection.schedules import SCHEDULES


def test_the_short_help_has_the_first_options_and_names_the_groups_of_the_others():
    text = run_parser().format_help()
    shown = set(re.findall(r"^  --([a-z-]+)", text, re.M)) - {"help-all"}
    assert {"config", "resume", "seeds", "list"} <= shown
    assert shown & {k.replace("_", "-") for k in RunConfig.model_fields} == set(SHOWN_FIRST)
    assert len(SHOWN_FIRST) == 12
    for field in RunConfig.model_fields.values():
        assert declared(field).group in text


def test_one_table_is_listed_by_itself(capsys):
    for wanted in ("schedule", "schedules"):
        with pytest.raises(SystemExit):
            run_asked_for(["--list", wanted])
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == "--schedule"
        assert [line.split()[0] for line in lines] == list(SCHEDULES)
    with pytest.raises(ConfigError, match=r"list='nix': no such table; allowed: .*schedule"):
        run_asked_for(["--list", "nix"])


def test_every_key_is_an_option_with_a_help_text():
    text = " ".join(full_help(run_parser()).split()).replace("- ", "-")  # lines end at dashes
    for key, field in RunConfig.model_fields.items():
        assert f"--{key.replace('_', '-')}" in text
        assert str(field.description).split("(")[0].strip().replace("- ", "-") in text


def test_help_shows_what_an_option_takes():
    text = " ".join(full_help(run_parser()).split())
    for shown in (
        "--score-cohort cohort|all|N ",
        "--max-norm auto|X ",
        "--ranks N,... ",
        "--rank-by activations|weights ",
        "--error-feedback, --no-error-feedback clients",
        "(default: 8, or the largest of --ranks; with --adapters)",
        "(with --unit other than weight or n:m; ",
    ):
        assert shown in text


def test_nothing_given_is_the_default_run():
    config, resume, _ = run_asked_for([])
    assert resume is None
    assert config == RunConfig()
    assert (config.task, config.clients, config.sparsity, config.score) == (
        "shakespeare",
        20,
        0.8,
        "taylor",
    )


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "one.toml"
    file.write_text('task = "digits"\nsparsity = 0.5\nlocal-steps = 3\nexclude = ["hidden*"]\n')
    config, _, _ = run_asked_for(["--config", str(file), "--sparsity", "0.7", "--no-agreement"])
    assert (config.task, config.sparsity, config.local_steps) == ("digits", 0.7, 3)
    assert config.exclude == ("hidden*",)
    assert config.agreement is False


PATTERNS = {"scope": "patterns", "layers": {"*": 0.5}}
LAYERS = {"h*": 0.1, "*": 0.9, "o*": 1.0}


@pytest.mark.parametrize(
    ("base", "options", "want"),
    [
        ({}, ["--optimizer", "sgd"], {"momentum": 0.8}),
        ({}, ["--threshold", "0.1"], {"threshold": 0.1, "sparsity": None, "schedule": "one-shot"}),
        ({}, ["--schedule", "one-shot"], {"schedule": "one-shot", "end": 6}),
        ({"schedule": "one-shot"}, ["--schedule", "cubic"], {"schedule": "cubic", "end": 15}),
        ({"threshold": 0.1}, ["--target-flops", "0.5"], {"target_flops": 0.5, "threshold": None}),
        ({"unit": "n:m"}, ["--unit", "row"], {"unit_shape": None, "sparsity": 0.8, "pool": "mean"}),
        ({"combine": "votes", "scope": "layer"}, ["--combine", "mean"], {"scope": "layer"}),
        ({"score": "movement"}, ["--score", "taylor"], {"score_during": "pass"}),
        ({**PATTERNS}, ["--scope", "erk"], {"layers": {}}),
        ({**PATTERNS}, ["--layers", "h*=0.1,*=0.9", "--layers", "o*", "1"], {"layers": LAYERS}),
    ],
)
def test_every_key_of_a_resolved_file_can_be_overridden(base, options, want, tmp_path):
    keys = {"task": "digits", "rounds": 20, "warmup": 5, "alpha": 0.2, "momentum": 0.8}
    free = {} if "local_epochs" in base else {"local_steps": 7}
    free |= {} if base.keys() & {"threshold", "schedule"} else {"end": 12}
    file = tmp_path / "config.toml"
    file.write_text(to_toml(RunConfig(**{**keys, **free, **base})))
    config, _, _ = run_asked_for(["--config", str(file), *options])
    assert {key: vars(config)[key] for key in want} == want


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "one.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config='.*one\.toml': .*; allowed: UTF-8"):
        run_asked_for(["--config", str(tmp_path / "one.toml")])


def test_resume_takes_the_folder_s_configuration_and_what_changes_no_bits(tmp_path):
    (tmp_path / "config.toml").write_text(to_toml(RunConfig(task="digits", seed=7)))
    config, resume, _ = run_asked_for(["--resume", str(tmp_path), "--engine", "inline"])
    assert resume == tmp_path
    assert (config.seed, config.engine) == (7, "inline")
    with pytest.raises(ConfigError, match=r"^seed: cannot change on --resume; allowed: deadline"):
        run_asked_for(["--resume", str(tmp_path), "--seed", "8"])
    assert set(RunConfig.model_fields) >= RESUMABLE


def test_the_list_has_every_table_with_a_line_about_each_name():
    blocks = dict(block.split("\n", 1) for block in listing("").split("\n\n"))
    for key, field in RunConfig.model_fields.items():
        if isinstance(names := declared(field).names, NameTable):
            lines = blocks[f"--{key.replace('_', '-')}"].splitlines()
            assert [line.split()[0] for line in lines] == list(names.keys())
            assert all(len(line.split()) > 1 for line in lines), key


def test_options_of_several_values():
    given = ["--task", "digits", "--unit", "block", "--unit-shape", "2,3"]
    assert run_asked_for(given)[0].unit_shape == (2, 3)
    given = ["--task", "digits", "--scope", "patterns", "--layers", "hidden*", "0.25"]
    assert run_asked_for(given)[0].layers == {"hidden*": 0.25}
    given = ["--task", "digits", "--blend", "layer", "--blend-grid", "0.5,1,1.25"]
    assert run_asked_for(given)[0].blend_grid == (0.5, 1.0, 1.25)
    given = ["--task", "digits", "--compile", "--no-agreement", "--checkpointing"]
    config = run_asked_for(given)[0]
    assert (config.compile, config.agreement, config.checkpointing) == (True, False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--unit block --unit-shape 2", "unit-shape="),
        ("--unit block --unit-shape 2,x", "unit-shape='x': not a whole number; allowed: "),
        ("--scope patterns --layers * lots", "layers='lots': not a number; allowed: "),
        ("--sparsity lots", "sparsity='lots': not a number; allowed: "),
        ("--baselines dense,dense", "baselines=('dense', 'dense'): an entry is there twice"),
        ("--alpha 1", "alpha=1.0: split is natural; allowed: leave it out, or --split"),
        ("--config nowhere.toml", "config='nowhere.toml': no such file"),
        ("--resume nowhere", "resume='nowhere/config.toml': no such file"),
        ("--roundz 3", "roundz='3': no such key; nearest: rounds; allowed: "),
        ("--rounds", "rounds: expected one argument; allowed: a whole number from 1"),
        ("stray --rounds 3", "'stray': not an option; allowed: the options in --help-all"),
        ("--colour", "colour='': no such key; nearest: "),
    ],
)
def test_bad_input_is_one_line_that_names_key_value_and_what_is_allowed(arguments, message):
    with pytest.raises(ConfigError) as refused:
        run_asked_for(arguments.split())
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_an_unknown_key_in_a_file_names_the_nearest(tmp_path):
    file = tmp_path / "one.toml"
    file.write_text("sparcity = 0.5\n")
    with pytest.raises(
        ConfigError, match=r"^sparcity=0.5: no such key; nearest: sparsity; allowed: "
    ):
        run_asked_for(["--config", str(file)])
    file.write_text("sparsity = \n")
    with pytest.raises(ConfigError, match=r"^config: not TOML"):
        run_asked_for(["--config", str(file)])
