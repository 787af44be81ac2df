import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedprune.export.decoder import Unheld, decoder_of
from fedprune.export.gguf_file import gguf_plan, write_gguf
from fedprune.export.gguf_reading import read_gguf
from fedprune.export.gguf_vocabulary import gguf_vocabulary
from fedprune.tasks.tokenization import characters, utf8_bytes
from tests.llama_cpp import run_by_llama_cpp

pytest.importorskip("gguf")

TEXT = "The cat's 12 hats, the dog's 345 mats;\n\n  they'LL sit — Straße 7, 日本\tx"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def of_bytes(*cuts: Any, regex: bool = False) -> Any:
    core = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    core.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last]) if cuts else last
    core.decoder = decoders.ByteLevel()
    return trained(core, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def of_sentencepiece() -> Any:
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    return trained(core, special_tokens=["<unk>", "<s>", "</s>", *bytes_])


def trained(core: Tokenizer, **given: Any) -> Any:
    given = {"special_tokens": ["<s>", "</s>"], **given}
    core.train_from_iterator([TEXT[:60]] * 4, trainers.BpeTrainer(vocab_size=400, **given))
    about = json.loads(core.to_str())  # bytes are tokens like others, not marks
    about["added_tokens"] = [t for t in about["added_tokens"] if not t["content"].startswith("<0x")]
    core = Tokenizer.from_str(json.dumps(about))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


SPLIT = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
QWEN = pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), behavior="isolated")
KINDS = {
    "gpt-2": lambda: of_bytes(regex=True),
    "smollm": lambda: of_bytes(pre_tokenizers.Digits(individual_digits=True), regex=True),
    "llama-bpe": lambda: of_bytes(SPLIT),
    "qwen2": lambda: of_bytes(QWEN),
    "default": of_sentencepiece,
    "bytes": lambda: utf8_bytes("causal").tokenizer,
    "characters": lambda: characters("causal").tokenizer,
}


def written(tokenizer: Any, path: Path) -> Path:
    size = len(tokenizer) + 3
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    plan = gguf_plan(decoder_of(LlamaForCausalLM(config), (), ("llama",)))
    write_gguf(path, plan, "f32", gguf_vocabulary(tokenizer, size), "tiny")
    return path


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.sampled(3)
def test_llama_cpp_cuts_texts_into_the_same_tokens(name, tmp_path):
    pytest.importorskip("xllamacpp")
    tokenizer = KINDS[name]()
    text = "The cat, 12 o'clock:\n - no" if name == "characters" else TEXT
    path = written(tokenizer, tmp_path / "a.gguf")
    _, ids = run_by_llama_cpp(path, [1, 2], len(tokenizer) + 3, text)
    assert ids == tokenizer(text).input_ids
    known = {"bytes": "gpt-2", "characters": "gpt-2"}.get(name, name)
    assert read_gguf(path).keys["tokenizer.ggml.pre"] == known


def test_a_chat_s_template_and_what_begins_a_text_are_kept(tmp_path):
    from tokenizers import processors

    tokenizer = KINDS["gpt-2"]()
    tokenizer.chat_template = "{{ messages[0]['content'] }}</s>"
    framed = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    tokenizer.backend_tokenizer.post_processor = framed
    keys = read_gguf(written(tokenizer, tmp_path / "a.gguf")).keys
    assert keys["tokenizer.chat_template"] == tokenizer.chat_template
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (1, 0)
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert keys["tokenizer.ggml.tokens"][-1].startswith("[PAD")
    assert set(keys["tokenizer.ggml.token_type"]) == {1, 3, 5}


def test_cuts_without_a_name_are_refused():
    words = Tokenizer(models.WordLevel({"one": 0, "two": 1}, "one"))
    for tokenizer, what in (
        (of_bytes(pre_tokenizers.Whitespace()), "cuts texts by Whitespace and ByteLevel"),
        (PreTrainedTokenizerFast(tokenizer_object=words), "WordLevel with no cuts, llama.cpp has"),
    ):
        with pytest.raises(Unheld, match=f"tokenizer: {what}"):
            gguf_vocabulary(tokenizer, 10)
