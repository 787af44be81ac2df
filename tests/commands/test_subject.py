import json
import shutil
from argparse import ArgumentParser

import pytest

from fedprune import load
from fedprune.codec.masks import decode_mask
from fedprune.commands.model_options import add_subject
from fedprune.commands.subject import chosen_subject, subject
from fedprune.options.refusal import ConfigError
from fedprune.tensors.models import state_of
from tests.runs import same


def test_a_run_folder_brings_its_configuration_masks_and_values(run_folder, tmp_path):
    found = subject(str(run_folder))
    assert (found.run, found.config.task, found.config.seed) == (run_folder, "digits", 3)
    assert same(state_of(found.model), state_of(load(run_folder)))
    assert same(found.masks, decode_mask((run_folder / "mask").read_bytes()))
    assert not found.model.training
    assert found.task.metric == "accuracy"
    names = list("0123456789")
    shutil.copy(run_folder / "model.fedprune", tmp_path)
    alone = subject(str(tmp_path))  # the coded file is enough
    assert (same(alone.masks, found.masks), alone.config.task) == (True, "digits")
    assert found.origin == {"task": "digits", "plugin": "", "model": "cnn", "class_names": names}


def test_the_model_folder_of_a_run_brings_its_task(run_folder):
    found = subject(str(run_folder / "model"))
    assert (found.run, found.masks, found.config.task) == (None, None, "digits")
    assert same(state_of(found.model), state_of(load(run_folder)))


def test_a_family_of_a_task_is_built_as_a_run_would_begin():
    parser = ArgumentParser()
    add_subject(parser)
    found = chosen_subject(parser.parse_args(["llama", "--task", "shakespeare", "--length", "16"]))
    assert (found.config.task, found.config.length) == ("shakespeare", 16)
    again = subject("llama", "shakespeare")
    assert type(found.model).__name__ == "LlamaForCausalLM"
    assert same(state_of(found.model), state_of(again.model))
    assert (found.masks, found.run) == (None, None)


def test_a_folder_of_transformers_is_read_for_a_task(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "good,yes\nbad,no\n" * 40)
    keys = {"data": str(rows), "length": 8}
    made = subject("bert", "text-classification", keys)
    made.model.save_pretrained(tmp_path / "hf")
    made.task.tokenizer(made.config).save_pretrained(tmp_path / "hf")
    with pytest.raises(ConfigError, match="no --task says what it is for"):
        subject(str(tmp_path / "hf"))
    found = subject(str(tmp_path / "hf"), "text-classification", keys)
    assert same(state_of(found.model), state_of(made.model))


@pytest.mark.parametrize(
    ("path", "task", "keys", "words"),
    [
        ("nowhere", None, {}, "nothing is there"),
        ("RUN", "digits", {}, "says itself what it is for"),
        ("RUN", None, {"label_column": "y"}, "label-column='y': only beside --task"),
        ("llama", "no-such-task", {}, "no such task"),
        ("no-such-family", "digits", {}, "no-such-family"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(run_folder, path, task, keys, words):
    with pytest.raises((ConfigError, ValueError), match=words) as refused:
        subject(path.replace("RUN", str(run_folder)), task, keys)
    assert "\n" not in str(refused.value)


def test_folders_that_are_not_ours_are_refused_by_what_they_lack(run_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"neither config\.toml nor fedprune\.json nor"):
        subject(str(tmp_path))
    shutil.copy(run_folder / "config.toml", tmp_path)
    with pytest.raises(ConfigError, match="a run that has not ended"):
        subject(str(tmp_path))
    (tmp_path / "config.toml").unlink()
    (tmp_path / "fedprune.json").write_text(json.dumps({"plugin": ""}))
    with pytest.raises(ValueError, match="it names no task"):
        subject(str(tmp_path))
    (tmp_path / "fedprune.json").write_text("{")
    with pytest.raises(ValueError, match=r"fedprune\.json: damaged, it is not JSON"):
        subject(str(tmp_path))
