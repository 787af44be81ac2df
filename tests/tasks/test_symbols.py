import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fedprune.tasks.symbols import (
    ALPHABET,
    MARKS,
    Symbols,
    characters,
    encode,
    encoded,
    own_symbols,
    rows_of,
)

PAD, UNKNOWN = 0, 1
TEXT = st.text(alphabet=[*ALPHABET[2:], "é", "—", "\t"], min_size=1, max_size=200)
ANY = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
PURPOSES = list(MARKS)


def words() -> Any:
    return characters("causal").tokenizer


def test_the_alphabet_is_fixed_and_without_doubles():
    assert ALPHABET[:3] == ("<pad>", "<unk>", "\n")
    assert "".join(ALPHABET[3:]).isprintable()
    assert {chr(c) for c in range(32, 127)} == set(ALPHABET[3:])
    assert len(set(ALPHABET)) == len(ALPHABET) == 98


@example("<unk> or not <unk>, <pad>")
@given(TEXT)
def test_the_tokenizer_has_the_ids_of_training(text: str):
    assert words()(text)["input_ids"] == encode(text).tolist()


@given(st.text(alphabet=ALPHABET[2:], max_size=80))
def test_the_tokenizer_gives_the_text_back(text: str):
    assert words().decode(words()(text)["input_ids"]) == text


def test_the_tokenizer_is_the_same_after_a_trip_to_disk(tmp_path: Path):
    from transformers import AutoTokenizer

    text = "O, for a muse of fire!\n\n  <pad> é"
    words().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == encode(text).tolist()
    assert (again.pad_token_id, again.unk_token_id) == (PAD, UNKNOWN)
    batch = again(["ab", "a"], padding=True)
    assert batch["input_ids"][1] == [*encode("a").tolist(), PAD]


@pytest.mark.parametrize("purpose", PURPOSES)
def test_marks_come_after_the_characters_and_never_from_a_text(purpose: str):
    symbols = characters(purpose)
    assert symbols.size == len(ALPHABET) + len(MARKS[purpose])
    assert len(symbols.tokenizer) == symbols.size
    for mark in MARKS[purpose]:
        assert symbols.tokenizer.convert_tokens_to_ids(mark) >= len(ALPHABET)
    ids, _ = encoded(symbols, "".join(MARKS[purpose]) + " a")
    assert ids.max() < len(ALPHABET)
    assert (symbols.mask is not None) == (purpose == "masked")
    assert (symbols.end is not None) == (purpose == "seq2seq")


@pytest.mark.parametrize("purpose", PURPOSES)
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_rows_are_the_texts_framed_cut_and_padded(purpose: str, texts: list[str]):
    symbols, length = characters(purpose), 20
    ids, attention, sizes = rows_of(symbols, texts, length)
    before = [98] if purpose == "classify" else []
    after = [98] if purpose == "seq2seq" else []
    for row, there, size, text in zip(ids, attention, sizes, texts, strict=True):
        room = length - len(before) - len(after)
        expected = [*before, *encode(text[:room]).tolist(), *after]
        assert row.tolist() == expected + [PAD] * (length - len(expected))
        assert there.tolist() == [1] * len(expected) + [0] * (length - len(expected))
        assert size == len(text[:room].encode())


@given(ANY)
def test_every_character_stands_for_its_own_bytes(text: str):
    ids, sizes = encoded(characters("causal"), text)
    assert len(ids) == len(sizes) == len(text)
    assert sizes.tolist() == [len(c.encode()) for c in text]


@functools.cache
def pieces(folder: Path, kind: str) -> Symbols:
    """A tokenizer of several characters a token, as a folder has it: GPT-2's kind or BERT's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = ["the thane of the north — él niño 日本 the other thane, then there"] * 3
    if kind == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=320, initial_alphabet=alphabet, special_tokens=["<end>"]
        )
        marks = {"eos_token": "<end>"}
    else:
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer(lowercase=True)
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[PAD]", "[UNK]"])
        marks = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, **marks, model_max_length=32)
    made.save_pretrained(folder)
    return own_symbols(str(folder), "some")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Symbols]:
    return {kind: pieces(tmp_path_factory.mktemp(kind), kind) for kind in ("bytes", "words")}


@given(text=st.text(alphabet="the north—élñ日 \n,", max_size=60))
def test_tokens_of_bytes_stand_for_all_bytes_once(text: str, made: dict[str, Symbols]):
    ids, sizes = encoded(made["bytes"], text)
    assert len(ids) == len(sizes)
    assert int(sizes.sum()) == len(text.encode())
    assert made["bytes"].tokenizer.decode(ids) == text


def test_spaces_that_a_tokenizer_drops_go_to_the_token_that_follows(made: dict[str, Symbols]):
    ids, sizes = encoded(made["words"], "the  the thane ")
    assert sizes.tolist()[:2] == [3, 5]
    assert int(sizes.sum()) == len("the  the thane")
    assert ids[0] == ids[1]


def test_a_tokenizer_without_padding_pads_with_its_end(made: dict[str, Symbols]):
    assert made["bytes"].pad == made["bytes"].end
    assert made["words"].pad == 0
    assert made["words"].mask is None
    ids, attention, _ = rows_of(made["bytes"], ["the", "the thane of the north"], 12)
    assert attention[0].sum() < 12
    assert (ids[0][attention[0] == 0] == made["bytes"].pad).all()


def test_a_text_longer_than_the_model_reads_is_no_warning(
    made: dict[str, Symbols], capfd: pytest.CaptureFixture[str]
):
    ids, _ = encoded(made["bytes"], "日本 " * 50)
    assert len(ids) > 32
    assert capfd.readouterr() == ("", "")
    assert torch.is_tensor(ids)
