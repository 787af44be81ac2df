"""The names of classes are saved with a model, and a model is loaded without the data."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fedprune
from fedprune import TASKS, federate
from fedprune.codec.coded_file import CODED_NAME, from_coded
from fedprune.commands.main import main
from fedprune.commands.subject import subject
from fedprune.config import configure, from_flower, overridden
from fedprune.options.refusal import ConfigError
from fedprune.tasks.encoder import read_bbc, read_r8
from fedprune.tasks.task import class_names_of
from fedprune.tensors.models import state_of
from tests.runs import with_pages

NAMES = ["0.10", "a, b", "x"]
KEYS: dict[str, Any] = {
    **{"task": "text-classification", "engine": "inline", "length": 16, "depth": 1, "width": 16},
    **{"clients": 2, "cohort": 2, "rounds": 2, "warmup": 1, "end": 2, "local_steps": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run whose data is gone."""
    folder = tmp_path_factory.mktemp("classes")
    data = folder / "rows.jsonl"
    rows = [{"text": f"row {i}", "label": NAMES[i % 3]} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with with_pages():
        federate(configure({**KEYS, "data": str(data)}), folder=folder / "run")
    data.unlink()
    return folder / "run"


@pytest.mark.slow
def test_names_are_in_every_file_in_the_order_of_the_outputs(run):
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    assert config["label2id"] == {name: i for i, name in enumerate(NAMES)}
    head = from_coded((run / CODED_NAME).read_bytes())[0]
    manifest = json.loads((run / "model" / "fedprune.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert [f["class_names"] for f in (head, manifest, summary)] == [NAMES] * 3
    assert "classes 0.10, a, b, x, in this order" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_classifier_is_loaded_without_its_data(run, capsys):
    whole = state_of(fedprune.load(run))
    for path in ("", "model"):
        model: Any = fedprune.load(run / path)
        assert model.config.id2label == dict(enumerate(NAMES))
        assert all(torch.equal(value, whole[name]) for name, value in state_of(model).items())
        assert subject(str(run / path)).config.class_names == tuple(NAMES)
    for form in ("safetensors", "sparse", "hf"):
        out = run / "export" / form
        assert main(["export", str(run / "model"), "--to", form, "--out", str(out)]) == 0
        again: Any = fedprune.load(out)
        assert again.config.id2label == dict(enumerate(NAMES))
    capsys.readouterr()
    assert main(["measure", str(run / "model"), "--no-memory", "--repeats", "1"]) == 0
    assert "quality of" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "read"), [("r8", read_r8), ("bbc", read_bbc)])
def test_topics_are_those_of_the_corpus(task, read):
    try:
        topics = {topic for topic, _ in read(task)}
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert TASKS[task].class_names == tuple(sorted(topics))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "shakespeare", "class_names": ["a", "b"]}, "task shakespeare has no classes"),
        ({"task": "digits", "class_names": ["a", "b"]}, "task digits has 10 classes"),
        ({**KEYS, "data": "x", "class_names": ["a", "a"]}, "an entry is there twice"),
    ],
)
def test_names_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ConfigError, match=f"class-names=.*: {message}; allowed: "):
        configure(keys)


def test_names_can_be_given(tmp_path):
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(20)))
    given = {**KEYS, "class_names": "1, 0, 2", "data": str(data)}
    config = overridden(*from_flower(given))[0]
    assert class_names_of(TASKS[config.task], config) == ("1", "0", "2")
    labels = [part["labels"] for s in TASKS[config.task].shards(config) for part in (s.train,)]
    assert {*torch.cat(labels).tolist()} == {0, 1}
    with pytest.raises(ValueError, match=r"class-names=\['1', '2'\]: rows have the label '0'"):
        TASKS[config.task].shards(config.model_copy(update={"class_names": ("1", "2")}))
