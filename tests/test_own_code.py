"""A file never chooses code: what a folder names as its plug-in runs only if the caller says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedprune
from fedprune import federate
from fedprune.client.teacher import teacher_in
from fedprune.commands.main import main as command
from fedprune.config import configure, to_toml
from fedprune.export.manifest import write_manifest
from fedprune.options.plugins import _loaded, check_of_this_app
from fedprune.options.refusal import ConfigError
from fedprune.tasks.fetching import from_pretrained
from simulations.run import main as run
from tests.runs import tiny

TASK = """
from dataclasses import replace
from pathlib import Path
from fedprune.tasks.catalog import TASKS as ours
{more}
TASKS = {{"own": replace(ours["digits"], summary="ours")}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with a plug-in, and an export of it."""
    root = tmp_path_factory.mktemp("own")
    plugin = root / "p.py"
    plugin.write_text(TASK.format(more=""))
    config = tiny(task="own", plugin=str(plugin), rounds=2, warmup=0, end=1, model="mlp")
    federate(config, folder=root / "run")
    to = ["--to", "safetensors", "--out", str(root / "export")]
    assert command(["export", str(root / "run"), "--plugin", str(plugin), *to]) == 0
    return root


@pytest.fixture
def swapped(folder, tmp_path) -> tuple[Path, Path, Path]:
    """The same folders, their plug-in replaced by one that leaves a trace; the trace's path."""
    for name in ("run", "export"):
        shutil.copytree(folder / name, tmp_path / name)
    trace = tmp_path / "trace"
    text = TASK.format(more=f"Path({str(trace)!r}).write_text('ran')")
    (folder / "p.py").write_text(text)
    _loaded.cache_clear()
    return tmp_path / "run", tmp_path / "export", trace


REFUSED = "a file does not choose what code runs; allowed: --plugin "

CALLS: dict[str, Callable[[Path, Path], Any]] = {
    "load": lambda run_, _: fedprune.load(run_),
    "load model/": lambda run_, _: fedprune.load(run_ / "model"),
    "load an export": lambda _, export: fedprune.load(export),
    "teacher": lambda run_, _: teacher_in(str(run_)),
    "init": lambda run_, _: configure({"init": str(run_)}),
    "init, another task": lambda run_, _: federate(
        configure({"init": str(run_), "task": "digits", "engine": "inline", "model": "mlp"})
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_folder_names_is_shown_and_not_run(name, swapped):
    run_, export, trace = swapped
    with pytest.raises(ValueError, match=r"p\.py'.*a file does not choose what code runs"):
        CALLS[name](run_, export)
    assert not trace.exists()


LINES = {
    "measure": ["measure", "{run}"],
    "measure model/": ["measure", "{run}/model"],
    "measure an export": ["measure", "{export}"],
    "export": ["export", "{run}", "--to", "sparse", "--out", "{run}/out"],
    "analyse": ["analyse", "{run}"],
    "audit": ["audit", "{run}"],
}


@pytest.mark.parametrize("name", LINES)
def test_so_do_the_commands(name, swapped, capsys):
    run_, export, trace = swapped
    line = [part.format(run=run_, export=export) for part in LINES[name]]
    assert command(line) == 2
    assert REFUSED in capsys.readouterr().err
    assert not trace.exists()


@pytest.mark.parametrize("option", [["--config", "{run}/config.toml"], ["--resume", "{run}"]])
@pytest.mark.parametrize("old", [False, True])
def test_so_does_a_configuration(option, old, swapped, capsys):
    run_, _, trace = swapped
    if old:  # as earlier versions wrote it: every key, no word of what followed
        text = (run_ / "config.toml").read_text().replace("[followed]\n", "")
        (run_ / "config.toml").write_text(text)
    assert run([part.format(run=run_) for part in option]) == 2
    assert REFUSED in capsys.readouterr().err
    assert not trace.exists()


def test_the_callers_own_plugin_runs(folder, swapped):
    run_, export, trace = swapped
    plugin = str(folder / "p.py")
    for path in (run_, run_ / "model", export):
        assert fedprune.load(path, plugin=plugin) is not None
    assert trace.exists()
    line = ["--resume", str(run_), "--plugin", plugin]
    assert run(line) == 2, "not the plug-in that the run began with"
    assert run([*line, "--resume-anyway"]) == 0, "it has ended, and says so"


def test_an_export_names_no_class_that_is_not_a_model(tmp_path):
    about = {"task": "shakespeare", "plugin": "", "to": "hf"}
    write_manifest(tmp_path, {**about, "class": "HfArgumentParser"})
    with pytest.raises(ValueError, match="of no class of transformers that is a model"):
        fedprune.load(tmp_path)


@pytest.mark.parametrize("plugin", ["/etc/own.py", "../own.py", "tests/../../own.py"])
def test_a_device_runs_no_file_from_outside_of_the_app(plugin):
    with pytest.raises(ValueError, match="not in the app"):
        check_of_this_app(plugin)
    check_of_this_app("tests/failing_task.py")
    check_of_this_app("")


def test_a_configuration_of_the_callers_own_is_not_a_file(folder):
    config = tiny(task="own", plugin=str(folder / "p.py"))
    assert "plugin" in to_toml(config)
    with pytest.raises(ConfigError, match="no such Python file"):
        tiny(task="own", plugin="nowhere.py")


class Touches:
    """As a pickle it makes a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
TINY |= {"num_attention_heads": 1, "model_type": "llama"}

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a pickle of anything": ({}, "a pickle of more than tensors, which could run code"),
    "a kernel": ({"_attn_implementation": "somebody/attn"}, "a file does not choose what code"),
    "a kernel of a part": (
        {"text_config": {"experts_implementation": "somebody/e"}},
        "a file does not choose what code",
    ),
    "no config at all": ({"text_config": {"model_type": "own"}}, "cannot load it"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_whatever_a_folder_of_transformers_holds_is_one_line(name, tmp_path):
    more, said = CONFIGS[name]
    trace = tmp_path / "trace"
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **more}))
    torch.save({"a": Touches(trace)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=said) as caught:
        from_pretrained(AutoModelForCausalLM, str(tmp_path), "bbc")
    assert len(str(caught.value).splitlines()) == 1
    assert not trace.exists()


@pytest.mark.parametrize("at", ["config.json", "tokenizer_config.json"])
def test_the_code_of_a_folder_of_transformers_is_refused_without_a_question(
    at, tmp_path, monkeypatch
):
    trace = tmp_path / "trace"
    (tmp_path / "own.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    said = {"auto_map": {n: ["own.A", "own.A"] if "Tok" in n else "own.A" for n in names}}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / at).write_text(json.dumps({**said, "model_type": "own"}))
    monkeypatch.setattr("builtins.input", lambda _: "y")
    kind = AutoModelForCausalLM if at == "config.json" else AutoTokenizer
    with pytest.raises((ValueError, FileNotFoundError), match="cannot load it"):
        from_pretrained(kind, str(tmp_path), "bbc")
    assert not trace.exists()
