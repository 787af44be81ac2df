from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralForCausalLM, Qwen2ForCausalLM

from fedprune import load
from fedprune.export import gguf_folder
from fedprune.export.exported_model import ExportedModel
from fedprune.export.exporting import export
from fedprune.export.gguf_reading import GgufContent, read_gguf
from fedprune.export.offered import GGUF_SUMMARIES
from fedprune.protocol.models import dense_model
from fedprune.structure.edits import Edit
from fedprune.structure.surgery import reshaped
from fedprune.tasks.tokenization import characters
from fedprune.tensors.models import state_of
from tests.llama_cpp import run_by_llama_cpp
from tests.runs import same, tiny

pytest.importorskip("gguf")

IDS = [5, 9, 40, 60, 3, 4, 4, 80, 12, 33, 64, 2]


ROPE = {
    **{"rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 32,
}
OTHERS = (MistralForCausalLM, Qwen2ForCausalLM)


def heads(block: int, *kept: int) -> Edit:
    return Edit("head", f"model.layers.{block}.self_attn", kept)


def neurons(block: int, kept: int) -> Edit:
    return Edit("neuron", f"model.layers.{block}.mlp", tuple(range(kept)))


CUTS = {
    "whole": (),
    "even": (heads(0, 0, 2), heads(1, 1, 3), neurons(0, 40), neurons(1, 40)),
    "uneven": (heads(0, 1), neurons(0, 40), neurons(1, 7)),
    "first without heads": (heads(0), neurons(1, 33)),
    "last without heads": (heads(1),),
    "last without neurons": (neurons(1, 0), heads(0, 0, 1, 2)),
    "a block gone": (heads(0), neurons(0, 0)),
}


def to_export(
    cut: str | Edit = "whole", model: str = "llama", kind: Any = None, **settings: Any
) -> ExportedModel:
    """A decoder with random weights, built anew where its class or its config is another one."""
    config = tiny(task="shakespeare", model=model)
    dense: Any = dense_model(config)
    if settings or kind:
        kind = kind or type(dense)
        known = dense.config.to_dict()
        known.pop("model_type")
        dense = kind(kind.config_class.from_dict(known | settings))
    gen = torch.Generator().manual_seed(0)
    for p in dense.parameters():
        p.data += torch.randn(p.shape, generator=gen) * 0.2
    edits = CUTS[cut] if isinstance(cut, str) else (cut,)
    return ExportedModel(reshaped(dense.eval(), edits), config, edits)


def next_token(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize(
    ("cut", "kind"), [*((cut, "f32") for cut in CUTS), *(("uneven", k) for k in GGUF_SUMMARIES)]
)
def test_every_cut_is_read_again_in_every_type(cut, kind, tmp_path):
    exported = replace(to_export(cut), dtype=kind)
    said = export(exported, "gguf", tmp_path / "out")
    plain = cut in ("whole", "even", "a block gone")
    assert said.startswith(f"architecture {'llama' if plain else 'deci'}")
    back, here = state_of(load(tmp_path / "out")), state_of(exported.model)
    if kind == "f32":
        assert same(back, here)
    else:
        worst = {"f16": 2**-10, "bf16": 2**-7, "q8_0": 0.01}[kind]
        assert all((back[n] - here[n]).abs().max() <= worst * here[n].abs().max() for n in here)
    types = set(read_gguf(tmp_path / "out" / "model.gguf").kinds.values())
    assert types <= {"F32", kind.upper(), "F16"}
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "fedprune.json", "model.gguf"}


@pytest.mark.parametrize("model", ["llama", "llama-gqa", "llama-tied"])
def test_transformers_reads_the_same_model(model, tmp_path):
    from transformers import AutoModelForCausalLM

    exported = to_export(model=model)
    export(exported, "gguf", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32
    )
    assert theirs.config.tie_word_embeddings == (model == "llama-tied")
    torch.testing.assert_close(next_token(theirs, IDS), next_token(exported.model, IDS))


@pytest.mark.parametrize(
    ("cut", "given"),
    [
        *((cut, {}) for cut in CUTS),
        ("uneven", {"model": "llama-gqa"}),
        ("uneven", {"attention_bias": True, "mlp_bias": True}),
        ("last without heads", {"attention_bias": True, "mlp_bias": True}),
        ("whole", {"rope_parameters": {**ROPE, "rope_type": "linear"}}),
        ("uneven", {"rope_parameters": {**ROPE, "rope_type": "llama3"}}),
        *((cut, {"kind": kind}) for kind in OTHERS for cut in ("whole", "uneven")),
    ],
)
@pytest.mark.sampled(3)
def test_llama_cpp_says_the_same(cut, given, tmp_path):
    pytest.importorskip("xllamacpp")
    exported = to_export(cut, **given)
    export(exported, "gguf", tmp_path / "out")
    text = "To be, or not:\n 12 O!"
    said, cut_text = run_by_llama_cpp(tmp_path / "out" / "model.gguf", IDS, 98, text)
    torch.testing.assert_close(
        torch.tensor(said), next_token(exported.model, IDS), atol=1e-4, rtol=1e-4
    )
    assert cut_text == characters("causal").tokenizer(text).input_ids


@pytest.mark.parametrize("spoilt", ["weights", "graph"])
def test_what_is_read_again_as_something_else_leaves_no_file(spoilt, tmp_path, monkeypatch):
    def otherwise(path: Path) -> GgufContent:
        content = read_gguf(path)
        if spoilt == "weights":
            content.tensors["blk.1.attn_q.weight"][0, 0] += 1e-3
        else:
            content = replace(content, keys={**content.keys, "rope.freq_base": 5e3})
        return content

    monkeypatch.setattr(gguf_folder, "read_gguf", otherwise)
    words = "q_proj.weight is not what" if spoilt == "weights" else "read again it says"
    with pytest.raises(ValueError, match=words):
        export(to_export(), "gguf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_zeros_stay_zeros_and_stand_in_for_what_is_gone(tmp_path):
    exported = replace(to_export("first without heads"), dtype="q8_0")
    exported.model.model.layers[1].mlp.up_proj.weight.data[::2] = 0.0
    said = export(exported, "gguf", tmp_path / "out")
    assert "1 unit of zeros in place of none" in said
    content = read_gguf(tmp_path / "out" / "model.gguf")
    assert content.keys["attention.head_count"] == [1, 4]
    assert not content.tensors["blk.0.attn_output.weight"].any()
    assert not content.tensors["blk.1.ffn_up.weight"][::2].any()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": MistralForCausalLM, "sliding_window": 8}, r"self_attn: sliding_window=8"),
    ({"model": "gpt2"}, r"GPT2LMHeadModel \(gpt2\) is no language model of llama, mistral, qwen2"),
    ({"hidden_act": "gelu"}, r"model\.layers\.0\.mlp: hidden_act='gelu'"),
    ({"rope_parameters": {**ROPE, "rope_type": "dynamic"}}, r"rotary_emb: rope_type='dynamic'"),
    ({"cut": Edit("rank", "model.layers.0.mlp.up_proj", (2,))}, r"layers\.0\.mlp\.up_proj is two"),
    ({"cut": Edit("vocab", "model.embed_tokens", (0, 1, 2), "1")}, r"edits of kind vocab"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_what_llama_cpp_cannot_hold_is_a_line_with_the_layer(given, words, tmp_path):
    exported = to_export(**given)
    with pytest.raises(ValueError, match=rf"to='gguf': .*{words}.*allowed: --to safe") as error:
        export(exported, "gguf", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_number_beyond_a_type_is_refused_or_kept_in_32_bits(tmp_path):
    exported = to_export()
    exported.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"type='f16': .*up_proj\.weight has numbers beyond 65504"):
        export(replace(exported, dtype="f16"), "gguf", tmp_path / "out")
    with pytest.raises(ValueError, match="type='f16': not with --to hf; allowed: --to gguf"):
        export(replace(exported, dtype="f16"), "hf", tmp_path / "out")
