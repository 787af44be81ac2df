import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedprune
from fedprune import TASKS, select
from fedprune.codec.coded_file import CODED_NAME, FILE_MAGIC, from_coded, to_coded
from fedprune.codec.masks import mask_digest
from fedprune.codec.tensor_file import tensor_file
from fedprune.export.manifest import MANIFEST_NAME
from fedprune.export.saved import load_saved, save_folder
from fedprune.protocol.models import dense_model, layout_for
from fedprune.records.results import write_results
from fedprune.server.state import Model, State
from fedprune.tasks.token_rows import encode
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import digest, masked
from tests.runs import same, tiny

ORIGIN = {"task": "digits", "plugin": ""}
WEIGHTS = {
    "z": torch.tensor([[1.5, 0.0], [0.0, -3e-42]]),
    "free": torch.tensor([-0.0, float("inf"), 7.0]),
    "scalar": torch.tensor(2.0),
    "none": torch.zeros(0, 3),
}
MASKS = {"z": torch.tensor([[True, False], [False, True]])}


def test_a_coded_file_comes_back_bit_for_bit():
    head, weights, masks = from_coded(to_coded(ORIGIN, WEIGHTS, MASKS))
    assert same(weights, WEIGHTS)
    assert same(masks, MASKS)
    assert digest(weights) == digest(WEIGHTS), "the sign of zero too"
    assert {key: head[key] for key in ORIGIN} == ORIGIN


def test_only_kept_values_are_in_it():
    size = 4000
    weights = {"w": torch.randn(size)}
    few = select({"w": weights["w"].abs()}, 0.9)
    data = to_coded(ORIGIN, masked(weights, few), few)
    assert len(data) < 4 * size * 0.1 + size / 8 + 400


def test_a_bit_that_is_flipped_or_bytes_that_are_cut_anywhere_are_found():
    data = to_coded(ORIGIN, WEIGHTS, MASKS)
    for place in range(len(data)):
        hurt = bytearray(data)
        hurt[place] ^= 1 << (place % 8)
        for bad in (bytes(hurt), data[:place], data + b"x"):
            with pytest.raises(ValueError, match=r"here\.fedprune: (damaged|not a fedprune)"):
                from_coded(bad, "here.fedprune")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(90), FILE_MAGIC[:-1], b"{}"])
def test_a_foreign_file_is_named_so(data):
    with pytest.raises(ValueError, match="not a fedprune coded file"):
        from_coded(data)


def test_both_forms_of_a_finished_run_give_the_same_bits(run_folder, tmp_path):
    moved = shutil.copytree(run_folder / "model", tmp_path / "elsewhere")
    whole, coded = load_saved(moved), load_saved(run_folder)
    assert same(state_of(whole), state_of(coded))
    assert same(whole.state_dict(), coded.state_dict())
    assert (whole.training, coded.training) == (False, False)
    summary = json.loads((run_folder / "summary.json").read_text())
    assert digest(state_of(coded)) == summary["weights_digest"]


def test_what_a_run_writes_fits_together(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    _, weights, masks = from_coded((run_folder / CODED_NAME).read_bytes())
    bits = (run_folder / "mask").read_bytes()
    assert mask_digest(masks) == mask_digest(fedprune.decode_mask(bits)) == summary["mask_digest"]
    assert (run_folder / "mask.sha256").read_text().split() == [summary["mask_digest"]]
    assert sum(int(m.sum()) for m in masks.values()) == summary["kept_parameters"]
    assert all(not w[~masks[n]].any() for n, w in weights.items() if n in masks)
    on_disk = summary["bytes_on_disk"]
    assert on_disk["pruned"] == (run_folder / CODED_NAME).stat().st_size
    assert on_disk["dense"] > 4 * sum(w.numel() for w in weights.values())
    assert on_disk["pruned"] < on_disk["dense"] * 0.7


def test_a_model_of_ones_own_is_filled(run_folder):
    own = load_saved(run_folder)
    for p in own.parameters():
        p.data.fill_(1.0)
    assert load_saved(run_folder, own) is own
    assert same(state_of(own), state_of(load_saved(run_folder)))


def test_a_model_that_does_not_fit_is_named(run_folder):
    with pytest.raises(ValueError, match=r"does not fit the model: .*differs"):
        load_saved(run_folder, nn.Linear(3, 2))


def test_a_task_that_is_gone_is_named(run_folder, tmp_path):
    _, weights, masks = from_coded((run_folder / CODED_NAME).read_bytes())
    (tmp_path / CODED_NAME).write_bytes(to_coded({"task": "gone", "plugin": ""}, weights, masks))
    with pytest.raises(ValueError, match=r"task 'gone' is not known here; pass the model"):
        load_saved(tmp_path)
    assert same(state_of(load_saved(tmp_path, load_saved(run_folder))), weights)


def test_an_empty_folder_and_a_damaged_file_are_named(run_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"neither {CODED_NAME} nor {MANIFEST_NAME}"):
        load_saved(tmp_path)
    (tmp_path / CODED_NAME).write_bytes((run_folder / CODED_NAME).read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{tmp_path}.*damaged"):
        load_saved(tmp_path)


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory) -> Path:
    """What a run of the default task writes of its model: a LLaMA, 80 % pruned by magnitude."""
    folder = tmp_path_factory.mktemp("llama")
    config = tiny(task="shakespeare")
    model = dense_model(config)
    layout = layout_for(config, model)
    names = layout.prunable
    masks = select({n: state_of(model)[n].abs() for n in names}, 0.8)
    weights = masked(state_of(model), masks)
    load_into(model, weights)
    write_results(folder, State(1, Model(weights, masks)), model.eval(), config, (layout, layout))
    return folder


def test_transformers_loads_the_model_folder(language_folder):
    theirs = AutoModelForCausalLM.from_pretrained(language_folder / "model")
    ours = load_saved(language_folder)
    assert type(theirs) is type(ours)
    assert same(theirs.state_dict(), ours.state_dict())
    assert same(state_of(theirs), state_of(ours))
    assert same(state_of(load_saved(language_folder / "model")), state_of(ours))
    zeros = [int((p == 0).sum()) for n, p in theirs.named_parameters() if n.endswith("proj.weight")]
    assert sum(zeros) == round(0.8 * (2 * (4 * 64 * 64 + 3 * 64 * 176)))


def test_transformers_loads_the_tokenizer_and_writes_text(language_folder):
    words = AutoTokenizer.from_pretrained(language_folder / "model")
    text = "To be, or\nnot to be"
    assert words(text)["input_ids"] == encode(text).tolist()
    model = AutoModelForCausalLM.from_pretrained(language_folder / "model")
    given: Any = words(text, return_tensors="pt", return_token_type_ids=False)
    said = model.generate(**given, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert words.decode(said[0]).startswith(text)
    assert said.shape[1] == len(text) + 5


def test_tied_weights_are_saved_once_and_loaded_tied(tmp_path, monkeypatch):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 4)
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.table.weight

    tied = replace(TASKS["digits"], model=lambda _: Tied(), output=("head",))
    monkeypatch.setitem(TASKS, "tied", tied)
    model, origin = Tied(), {"task": "tied", "plugin": ""}
    save_folder(model, tmp_path / "model", origin)
    (tmp_path / CODED_NAME).write_bytes(to_coded(origin, state_of(model), {}))
    for folder in (tmp_path, tmp_path / "model"):
        back = load_saved(folder)
        assert back.head.weight is back.table.weight
        assert same(state_of(back), state_of(model))


TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def test_the_pieces_are_the_bytes_that_safetensors_writes():
    shared = torch.arange(6.0)
    tensors = {f"b/{t}": torch.arange(5).to(t) for t in TYPES + WHOLE}
    tensors |= {"é": shared[:4].view(2, 2), "a": shared[4:], "none": torch.empty(0, 3)}
    tensors |= {"turned": torch.arange(6.0).view(2, 3).t(), "flag": torch.tensor(True)}
    data = b"".join(tensor_file(tensors, {"said": "as it is: \u00e9"}))
    own = {n: t.contiguous().clone() for n, t in tensors.items()}
    assert data == save(own, {"said": "as it is: \u00e9"})
    assert all(torch.equal(t, tensors[n]) for n, t in load(data).items())
