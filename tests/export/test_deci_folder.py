import json

import pytest
import torch
from transformers import AutoConfig

from fedprune import load
from fedprune.export import deci_folder
from fedprune.export.decilm import CONFIG_CODE_NAME
from fedprune.export.exporting import export
from fedprune.tensors.models import state_of
from tests.export.test_gguf_folder import CUTS, OTHERS, REFUSED, to_export
from tests.runs import same

MORE = [
    ("uneven", {"model": "llama-gqa"}),
    ("last without heads", {"attention_bias": True, "mlp_bias": True}),
    *((cut, {"kind": kind}) for kind in OTHERS for cut in ("whole", "uneven")),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("cut", "given"), [*((cut, {}) for cut in CUTS), *MORE])
def test_every_cut_is_read_again(cut, given, tmp_path):
    exported = to_export(cut, **given)
    said = export(exported, "vllm", tmp_path / "out")
    assert "read again: " in said
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    blocks = config["block_configs"]
    assert len(blocks) == config["num_hidden_layers"] == 2 - (cut == "a block gone")
    assert not blocks[0]["attention"]["no_op"]
    for block in blocks:
        if not block["attention"]["no_op"]:
            assert config["num_attention_heads"] % block["attention"]["n_heads_in_group"] == 0
    if not given.keys() & {"kind", "attention_bias"}:
        assert same(state_of(load(tmp_path / "out")), state_of(exported.model))


def test_the_config_s_code_gives_what_vllm_reads(tmp_path):
    """As transformers reads it, where the user trusts the folder's code."""
    export(to_export("uneven"), "vllm", tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert [b.attention.n_heads_in_group for b in config.block_configs] == [4, 1]
    assert [b.ffn.intermediate_size for b in config.block_configs] == [40, 7]
    assert not hasattr(config.block_configs[0].ffn, "ffn_mult")
    config.save_pretrained(tmp_path / "again")
    assert (tmp_path / "out" / CONFIG_CODE_NAME).is_file()


def test_large_weights_are_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(deci_folder, "LARGEST_FILE", "100KB")
    exported = to_export("uneven")
    export(exported, "vllm", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert same(state_of(load(tmp_path / "out")), state_of(exported.model))


def test_what_is_read_again_as_something_else_leaves_no_folder(tmp_path, monkeypatch):
    right = deci_folder.deci_content

    def otherwise(folder):
        config, tensors = right(folder)
        return {**config, "rope_parameters": {"rope_theta": 5e3}}, tensors

    monkeypatch.setattr(deci_folder, "deci_content", otherwise)
    with pytest.raises(ValueError, match=r"read again it says .* else"):
        export(to_export(), "vllm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "words"), REFUSED[:2])
def test_what_vllm_cannot_hold_is_a_line_with_the_layer(given, words, tmp_path):
    with pytest.raises(ValueError, match=rf"to='vllm': .*{words}.*allowed: --to safetensors"):
        export(to_export(**given), "vllm", tmp_path / "out")


def test_the_type_is_the_one_that_was_brought(tmp_path, monkeypatch):
    monkeypatch.setattr(deci_folder, "dtype_of", lambda _: torch.bfloat16)
    exported = to_export("uneven")
    export(exported, "vllm", tmp_path / "out")
    config, tensors = deci_folder.deci_content(tmp_path / "out")
    assert config["dtype"] == "bfloat16"
    name = "model.norm.weight"
    assert torch.equal(tensors[name], state_of(exported.model)[name].bfloat16().float())
