"""What a run goes on with is what it began with, and every file that it counts on is as written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fedprune import ConfigError, RunConfig, federate
from fedprune.client.host import build_host
from fedprune.codec.coded_file import CODED_NAME
from fedprune.engines.inline import inline_port
from fedprune.methods.catalog import memories_of
from fedprune.records import bound
from fedprune.records.bound import began_with, gone_on_with, keep_began
from fedprune.records.checkpoint import save_state
from fedprune.records.folder import (
    begin,
    check_resumable,
    checkpoint_path,
    fresh_folder,
    gone_on,
    growing,
    rewind,
)
from fedprune.records.resumed import resumed_config
from fedprune.runtime.files import read_verified, write_verified
from fedprune.server.state import Model, State
from tests.records.harm import all_refused
from tests.runs import Killed, cut_short, killed_after, played, same, tiny


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> tuple[RunConfig, Path]:
    """A run that was killed after round three of five."""
    config, folder = tiny(model="mlp", local_steps=1), tmp_path_factory.mktemp("bound") / "run"
    cut_short(config, folder, 3)
    return config, folder


@pytest.fixture
def copied(half, tmp_path) -> tuple[RunConfig, Path]:
    return half[0], shutil.copytree(half[1], tmp_path / "run")


def test_every_corruption_of_a_checkpoint_is_refused_by_its_name(half):
    path = checkpoint_path(half[1], "pruned")
    all_refused(path, lambda: check_resumable(half[1]))


HARM: dict[str, Callable[[list[str]], list[str]]] = {
    "gone": lambda _: [],
    "a line less": lambda lines: lines[:-1],
    "another digit": lambda lines: [lines[0].replace("1", "2", 1), *lines[1:]],
    "no json in the middle": lambda lines: [lines[0], "{\n", *lines[2:]],
}


@pytest.mark.parametrize("name", ["rounds.jsonl", "timings.jsonl", "privacy.jsonl"])
@pytest.mark.parametrize("harm", HARM)
def test_what_a_checkpoint_counts_on_is_as_it_was(copied, name, harm):
    config, folder = copied
    path = folder / name
    lines = HARM[harm](path.read_text().splitlines(keepends=True))
    path.write_text("".join(lines)) if lines else path.unlink()
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        federate(config, folder=folder, resume=True)


def newest_gone(folder: Path) -> None:
    save_state(State(0, Model({}, {})), checkpoint_path(folder, "warm"), growing(folder))
    checkpoint_path(folder, "pruned").unlink()


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another arm's checkpoint": (
        lambda f: shutil.copyfile(checkpoint_path(f, "pruned"), checkpoint_path(f, "warm")),
        r"warm\.safetensors: damaged or foreign",
    ),
    "no checkpoint": (lambda f: checkpoint_path(f, "pruned").unlink(), r"pruned\.s\w+ is gone"),
    "not the newest checkpoint": (newest_gone, r"pruned\.safetensors is gone"),
    "a link": (lambda f: (f / "model").symlink_to(f.parent), "model is a link out of the folder"),
    "no configuration": (lambda f: (f / "config.toml").unlink(), r"config\.toml"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_not_as_it_was_left_is_refused(copied, name):
    config, folder = copied
    harm, said = REFUSED[name]
    harm(folder)
    with pytest.raises(ConfigError, match=said):
        federate(config, folder=folder, resume=True)


@pytest.mark.parametrize("harm", ["a row twice", "no text"])
@pytest.mark.parametrize("name", ["rounds.jsonl", "timings.jsonl"])
def test_rows_that_no_checkpoint_vouches_for_do_not_count(copied, name, harm):
    path = copied[1] / name
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole.splitlines(keepends=True)[-1] if harm == "a row twice" else b"\xff{}\n")
    rows, _ = rewind(copied[1], ["pruned"], check_resumable(copied[1]), memories_of(""))
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert path.read_bytes() == whole


def test_a_verified_file_comes_back_or_is_named(tmp_path):
    path = tmp_path / "a.bin"
    for content in (b"", b"x", bytes(100)):
        write_verified(path, content)
        assert read_verified(path) == content
    path.rename(tmp_path / "b.bin")
    with pytest.raises(ValueError, match=r"b\.bin: damaged or foreign"):
        read_verified(tmp_path / "b.bin")
    write_verified(path, b"x")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.bin: damaged"):
        read_verified(path)


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_another_configuration_is_refused_or_written_down(copied):
    config, folder = copied
    path = folder / "config.toml"
    path.write_text(path.read_text().replace("seed = 3", "seed = 4"))
    with pytest.raises(ConfigError, match=r"config\.toml is not as it was when the run began"):
        federate(config, folder=folder, resume=True)
    result = federate(config, folder=folder, resume=True, anyway=True)
    (line,) = result.summary["resumed_anyway"]
    assert line.startswith("config.toml is not as it was")
    assert line in (folder / "report.html").read_text()
    again = federate(config, folder=folder, resume=True)
    assert again.summary["resumed_anyway"] == [line], "once told, it stays"


def test_other_data_is_refused(copied):
    config, folder = copied
    shards = build_host(config).shards
    other = {**shards, 0: shards[1], 1: shards[0]}
    with pytest.raises(ConfigError, match="the data is not as it was"):
        federate(config, inline_port(build_host(config, other)), folder=folder, resume=True)


@pytest.mark.parametrize("package", ["torch", "numpy", "transformers", "fedprune"])
def test_other_versions_are_refused_by_name(copied, package, monkeypatch):
    config, folder = copied
    was = bound._version
    monkeypatch.setattr(bound, "_version", lambda p: "0.0.1" if p == package else was(p))
    with pytest.raises(ConfigError, match=rf"{package} is 0\.0\.1, was .* when the run began"):
        federate(config, folder=folder, resume=True)


def test_another_plugin_under_the_same_name_is_refused(tmp_path):
    plugin = tmp_path / "own.py"
    text = "from fedprune.tasks.catalog import TASKS as ours\nTASKS = {'own': ours['digits']}\n"
    plugin.write_text(text)
    config = tiny(task="own", plugin=str(plugin), model="mlp", rounds=2, warmup=0, end=1)
    federate(config, folder=tmp_path / "run")
    plugin.write_text(text + "# another\n")
    with pytest.raises(ConfigError, match="the plug-in, or what it imports, is not as it was"):
        federate(config, folder=tmp_path / "run", resume=True)


def test_another_engine_is_written_down_and_the_configuration_stays(copied, half, tmp_path):
    config, folder = copied
    before = (folder / "config.toml").read_bytes()
    other = config.model_copy(update={"engine": "ray"})  # the port serves it in this process
    port = inline_port(build_host(config))
    summary = federate(other, port, folder=folder, resume=True).summary
    assert summary["engine"] == "ray"
    unchanged = federate(config, folder=shutil.copytree(half[1], tmp_path / "same"), resume=True)
    assert "resumed_anyway" not in unchanged.summary
    assert summary["resumed_anyway"] == [f"engine is ray, was {config.engine} when the run began"]
    assert (folder / "config.toml").read_bytes() == before


def test_a_plug_in_is_what_it_imports_too(tmp_path, monkeypatch):
    plugin, elsewhere = tmp_path / "mine.py", tmp_path / "lib" / "far.py"
    elsewhere.parent.mkdir()
    monkeypatch.syspath_prepend(str(elsewhere.parent))
    plugin.write_text("import json\nfrom parts.inner import f\nimport beside, far\n")
    (tmp_path / "parts").mkdir()
    files = [tmp_path / "parts" / "__init__.py", tmp_path / "parts" / "inner.py"]
    files += [tmp_path / "beside.py", tmp_path / "deeper.py", elsewhere]
    for file in files:
        file.write_text("")
    files[1].write_text("import deeper\n")
    (tmp_path / "other.py").write_text("imported nowhere")
    seen = [began_with(b"", str(plugin), "")["plugin"]]
    for file in [*files, plugin]:
        file.write_text(file.read_text() + "# changed\n")
        seen.append(began_with(b"", str(plugin), "")["plugin"])
    assert len(set(seen)) == len(seen)
    (tmp_path / "other.py").write_text("this is no Python (")
    assert began_with(b"", str(plugin), "")["plugin"] == seen[-1]


@pytest.mark.parametrize("key", ["init", "teacher"])
def test_a_run_goes_on_with_the_models_that_it_began_with(key, tmp_path):
    folder, run = tmp_path / "other", tmp_path / "run"
    folder.mkdir()
    (folder / CODED_NAME).write_bytes(b"one")
    began = began_with(b"", "", "", {key: str(folder)})
    keep_began(run, began)
    assert gone_on_with(run, began, anyway=False) == []
    (folder / CODED_NAME).write_bytes(b"two")
    now = began_with(b"", "", "", {key: str(folder)})
    with pytest.raises(ValueError, match=f"the model of --{key} is not as it was"):
        gone_on_with(run, now, anyway=False)
    assert gone_on_with(run, now, anyway=True)


def test_a_run_that_was_killed_as_it_began_begins_again(tmp_path):
    killed = patch("fedprune.records.folder.write_atomically", side_effect=Killed)
    with killed, pytest.raises(Killed):
        begin(tmp_path / "run", tiny(model="mlp"))
    assert fresh_folder(tiny(out=str(tmp_path / "run"))) == tmp_path / "run"
    begin(tmp_path / "run", tiny(model="mlp"))
    assert gone_on(tmp_path / "run", tiny(model="mlp")) == []


@pytest.mark.parametrize("method", ["spafl", "fedselect"])
def test_a_run_that_gave_what_its_method_does_not_read_goes_on(method, tmp_path, monkeypatch):
    """As an earlier version took it: what is refused today of a run that begins."""
    keys = {"model": "mlp", "local_steps": 1, "rounds": 3, "end": None, "sparsity": 0.0}
    config = tiny(**keys, method=method, warmup=1)
    with monkeypatch.context() as earlier:
        earlier.setattr("fedprune.run.config_checked", lambda c, **_: c)
        with pytest.raises(Killed):
            federate(config, folder=tmp_path / "run", watch=killed_after(1))
    with pytest.raises(ConfigError, match=r"^warmup="):
        federate(config)
    again = resumed_config(tmp_path / "run", {})
    found = federate(again, folder=tmp_path / "run", resume=True).state
    whole = played(tiny(**keys, method=method, warmup=None)).state
    assert same(found.weights, whole.weights)
    assert repr(found.memories) == repr(whole.memories)


def test_a_run_that_goes_on_is_refused_what_its_method_does_not_go_with(tmp_path):
    keys = {"model": "mlp", "sparsity": 0.0, "warmup": None, "end": None}
    config = tiny(**keys, method="fedselect", max_norm=1.0)
    with pytest.raises(ConfigError, match=r"^max_norm="):
        federate(config, folder=tmp_path, resume=True)
