"""What a user's folder brings comes back as it was, field by field."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from safetensors import safe_open

import fedprune
from fedprune import federate
from fedprune.config import configure, from_toml
from fedprune.export.brought import rounded
from fedprune.export.card import card
from fedprune.export.exported_model import ExportedModel
from fedprune.export.exporting import export
from fedprune.protocol.origin import blank
from fedprune.tensors.models import state_of
from fedprune.tensors.named import digest
from tests.families import family, forward

GENERATION = {
    **{"bos_token_id": 0, "eos_token_id": [2, 1], "temperature": 0.7, "top_p": 0.9},
    **{"max_new_tokens": 77, "transformers_version": "4.40.0"},
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"


def llama(folder: Path, dtype: torch.dtype) -> None:
    """A tiny LLaMA whose tokenizer pads with nothing, saved with everything that can be set."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    marks = ["<s>", "</s>", "<|end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=264, initial_alphabet=letters, special_tokens=marks
    )
    core.train_from_iterator(["the cat sat"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<|end|>"]},
        chat_template=TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(
        **{**sizes, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 270},
        **{"bos_token_id": 0, "eos_token_id": [2, 1], "use_cache": True},
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32])
def played(request, tmp_path_factory) -> tuple[Path, Path, Any]:
    """The user's folder, and a run that began with it."""
    folder = tmp_path_factory.mktemp("brought")
    llama(folder / "own", request.param)
    (folder / "rows.txt").write_text("the cat sat on a mat\n" * 40)
    given = {
        **{"task": "language-modelling", "model": str(folder / "own"), "engine": "inline"},
        **{"data": str(folder / "rows.txt"), "clients": 2, "cohort": 2, "rounds": 2, "warmup": 1},
        **{"end": 2, "local_steps": 1, "lr": 1e-3},
    }
    result = federate(configure(given), folder=folder / "run")
    return folder / "own", folder / "run", result


def same_files(own: Path, folder: Path) -> None:
    names = [path.name for path in own.iterdir() if path.suffix in (".json", ".jinja")]
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= set(names)
    for name in names:
        one, two = ((f / name).read_text() for f in (own, folder))
        assert one == two or json.loads(one) == json.loads(two), name


def dtypes(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.sampled(1)
def test_every_file_and_the_type_come_back_in_every_form(played):
    own, run, result = played
    config = configure(from_toml((run / "config.toml").read_text()))
    removed = result.summary["sparsity"]
    forms = ("hf", "safetensors", "sparse")
    for form in forms:
        export(ExportedModel(result.model, config, masks=result.state.masks), form, run / form)
    for folder in (run / "model", *(run / form for form in forms)):
        same_files(own, folder)
        card_text = (folder / "README.md").read_text()
        loader = "fedprune" if folder.name == "sparse" else "transformers"
        assert metadata_load(folder / "README.md")["library_name"] == loader
        assert f"sparsity: {removed:.4f}" in card_text
        weights = folder / "model.safetensors"
        assert not weights.is_file() or dtypes(weights) == dtypes(own / "model.safetensors")
        kind = torch.float32 if folder.name == "sparse" else torch_type(own)
        for name, value in state_of(fedprune.load(folder)).items():
            assert value.dtype == torch.float32
            assert torch.equal(value, state_of(result.model)[name].to(kind).float())
    for name, value in state_of(fedprune.load(run)).items():
        assert torch.equal(value, state_of(result.model)[name]), "the coded file is exact"


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3"])
def test_what_no_file_holds_is_not_rounded(name, tmp_path):
    """Frequencies of positions, and the scale of Gemma's embeddings."""
    model = copy.deepcopy(family(name).model).float()
    before = {n: b.clone() for n, b in model.named_buffers()}
    kept = {n: p.bfloat16() for n, p in model.named_parameters()}
    found = rounded(model, torch.bfloat16)
    assert before
    assert all(torch.equal(b, before[n]) for n, b in found.named_buffers())
    assert all(torch.equal(p, kept[n]) for n, p in found.named_parameters())
    found.save_pretrained(tmp_path)
    back = type(found).from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(forward(name, found.float()), forward(name, back))


def test_what_was_saved_loads_when_the_user_s_folder_is_gone(played):
    """A cut one needs it, and says so."""
    own, run, _ = played
    there = [fedprune.load(folder) for folder in (run, run / "model")]
    away = own.rename(own.with_name("away"))
    try:
        for folder, before in zip((run, run / "model"), there, strict=True):
            assert digest(state_of(fedprune.load(folder))) == digest(state_of(before))
        about = json.loads((run / "model/fedprune.json").read_text())
        with pytest.raises(FileNotFoundError, match="no such folder, and what was cut of its"):
            blank({**about, "edits": [{"kind": "head"}]})
    finally:
        away.rename(own)


def torch_type(own: Path) -> torch.dtype:
    return {"BF16": torch.bfloat16, "F32": torch.float32}[dtypes(own / "model.safetensors").pop()]


def test_a_card_is_read_by_the_hub(played):
    _, run, _ = played
    read = ModelCard.load(run / "model" / "README.md")
    data = read.data.to_dict()
    assert (data["license"], data["library_name"]) == ("unknown", "transformers")
    assert data["pipeline_tag"] == "text-generation"
    assert "`fedprune run --config" in read.text
    (run / "model" / "README.md").write_text("the user's own words")
    fedprune.load(run / "model")  # a card is theirs to edit


def test_a_card_names_the_classes_and_a_base_of_the_hub():
    config = configure({"task": "r8", "model": "someone/encoder"})
    text = card(config, "BertForSequenceClassification", 0.5)
    assert 'base_model: "someone/encoder"' in text
    assert "0 = acq, 1 = crude" in text
    assert "command" not in text
