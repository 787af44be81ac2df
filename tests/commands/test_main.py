import importlib.util
import subprocess
import sys

import pytest

from fedprune.commands import main as command
from fedprune.commands.catalog import Command
from fedprune.commands.main import COMMANDS, main
from fedprune.commands.model_options import add_subject
from fedprune.commands.subject import chosen_subject


def test_a_package_that_is_missing_is_said_before_the_opening_lines(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "peft" else real(n, *a)
    )
    assert main(["run", "--adapters", "lora", "--rounds", "1"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("peft is not installed; allowed: none, or pip install fedprune[llm]\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["lok", "x"], "command='lok': no such command (did you mean look?); allowed: run, look"),
        (["look"], "required: MODEL (all options are in fedprune look --help)"),
        (["look", "nowhere"], "model='nowhere': nothing is there"),
        (["look", "x", "--tsk=digits"], "--tsk=digits: no such option (did you mean --task?)"),
        (["look", "x", "y"], "y: no such option; allowed: those in fedprune look -h"),
        (["look", "llama", "--task", "digits"], "llama"),
    ],
)
def test_a_command_is_run_and_bad_input_ends_with_2_and_one_line(
    arguments, words, run_folder, capsys, monkeypatch
):
    def look(arguments) -> int:
        print(type(chosen_subject(arguments).model).__name__)
        return 0

    table = {"look": Command("Prints the model's class.", "  fedprune look X", add_subject, look)}
    monkeypatch.setattr(command, "COMMANDS", table)
    assert main(["look", str(run_folder)]) == 0
    assert capsys.readouterr().out == "ConvNet\n"
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("fedprune: error: ")
    assert words in said.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_itself(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert done.value.code == 0
    assert COMMANDS[name].examples in said
    assert f"fedprune {name} " in COMMANDS[name].examples


def test_it_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "fedprune", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: fedprune")
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_file_of_devices_that_is_not_there_is_refused_before_anything_is_said(how, capsys):
    assert main(["run", "--task", "digits", "--profiles", "nowhere.toml", *how]) == 2
    out, error = capsys.readouterr()
    assert (out, "profiles='nowhere.toml': cannot be read" in error) == ("", True)
