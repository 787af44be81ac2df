"""Help, the version and what no option takes are answered before torch is there."""

import subprocess
import sys

import pytest

from fedprune.commands.run_options import told_at_once
from fedprune.config import configure
from fedprune.config.allowed import check_built_in_names
from fedprune.config.sections import AllOptions
from fedprune.learning.blending import BLENDS
from fedprune.learning.mask_rules import MASKS
from fedprune.learning.robust_rules import ROBUST
from fedprune.options.name_table import NameTable
from fedprune.options.option import options_of
from fedprune.options.refusal import ConfigError
from fedprune.selection.units import UNITS

TABLES = {
    key: option.says.names
    for key, option in options_of(AllOptions).items()
    if isinstance(option.says.names, NameTable)
}

LINES = [
    "--help",
    "--version",
    "nix",
    "run --help",
    "run --sparsiti 0.5",
    "run stray",
    "run --sparsity 2",
    "run --sparsity",
    "run --lr fast --engine ray",
    "run --engine flink",
    "run --task nix",
    "run --score tailor --engine ray",
    "run --method fedrst",
    "run --combine nix --workers 2",
    "run --layers attn 0.5 --layers mlp x",
    "run --baselines dense,dense",
    "run --config nowhere.toml --sparsity -1",
    "measure --help",
    "measure",
    "measure x --batch 0",
    "analyse x --energy 3",
    "export x --to zip",
    "audit x --shadows 7",
]

CODE = """
import contextlib, io, sys
from fedprune.commands.main import main
for line in sys.argv[1:]:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            code = main(line.split())
        except SystemExit as end:
            code = end.code
    loaded = {m.split(".")[0] for m in sys.modules}
    heavy = loaded & {"torch", "transformers", "ray", "flwr", "numpy"}
    asked = line.endswith("--help") or line == "--version"
    if heavy or code != (0 if asked else 2) or (not asked and told.getvalue().count("\\n") != 1):
        print(line, code, heavy, told.getvalue())
"""


def test_help_and_refusals_load_nothing_that_takes_long():
    done = subprocess.run([sys.executable, "-c", CODE, *LINES], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("key", TABLES)
def test_names_are_the_tables_and_others_refused_in_the_words_of_the_configuration(key):
    assert TABLES[key].keys() == tuple(TABLES[key]("")), "read off the source"
    with pytest.raises(ConfigError) as late:
        configure({key: "nix"})
    with pytest.raises(ConfigError) as early:
        check_built_in_names(AllOptions, {key: "nix"})
    assert str(early.value) == str(late.value)


def test_what_may_run_is_not_refused(capsys):
    for line in ("", "--task digits --sparsity 0.5 --no-verbose", "--resume x --sparsity 0.5"):
        assert told_at_once(line.split(), "run.py") == 0
    assert told_at_once(["--plugin", "own.py", "--task", "own"], "run.py") == 0
    assert capsys.readouterr() == ("", "")


def test_options_are_read_beside_the_names_that_the_tables_have():
    """Written out in the sections, which import no table."""
    when = {key: option.says.when for key, option in options_of(AllOptions).items()}
    counting = {name for name, rule in ROBUST.items() if rule.needs is not None}
    assert {*when["byzantine"]["robust"]} == counting
    assert {*when["average"]["masks"]} == MASKS.keys() - {"global"}
    assert {*when["blend_grid"]["blend"]} == BLENDS.keys() - {"none"}
    assert {*when["unit_shape"]["unit"]} == {name for name, unit in UNITS.items() if unit.shape}
