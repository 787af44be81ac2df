import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fedprune.tasks.token_rows import encode, ids_of_text, token_rows
from fedprune.tasks.tokenization import (
    ALPHABET,
    FIRST_BYTE,
    MARKS,
    Symbols,
    characters,
    own_symbols,
    symbols_of,
    utf8_bytes,
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
def test_the_tokenizer_has_the_ids_of_training_and_gives_the_text_back(text):
    ids = words()(text)["input_ids"]
    assert ids == encode(text).tolist()
    known = "".join(c for c in text if c in ALPHABET)
    assert words().decode([i for i in ids if i != UNKNOWN]) == known


def test_the_tokenizer_is_the_same_after_a_trip_to_disk(tmp_path):
    from transformers import AutoTokenizer

    text = "O, for a muse of fire!\n\n  <pad> é"
    words().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == encode(text).tolist()
    assert (again.pad_token_id, again.unk_token_id) == (PAD, UNKNOWN)
    batch = again(["ab", "a"], padding=True)
    assert batch["input_ids"][1] == [*encode("a").tolist(), PAD]


@pytest.mark.parametrize("purpose", PURPOSES)
def test_marks_come_after_the_characters_and_never_from_a_text(purpose):
    symbols = characters(purpose)
    assert symbols.size == len(ALPHABET) + len(MARKS[purpose])
    assert len(symbols.tokenizer) == symbols.size
    for mark in MARKS[purpose]:
        assert symbols.tokenizer.convert_tokens_to_ids(mark) >= len(ALPHABET)
    ids = ids_of_text(symbols, "".join(MARKS[purpose]) + " a").ids
    assert ids.max() < len(ALPHABET)
    assert (symbols.mask is not None) == (purpose == "masked")
    assert (symbols.end is not None) == (purpose == "seq2seq")


@pytest.mark.parametrize("purpose", PURPOSES)
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_rows_are_the_texts_framed_cut_and_padded(purpose, texts):
    symbols, length = characters(purpose), 20
    rows = token_rows(symbols, texts, length)
    read = zip(rows.ids, rows.attention, rows.sizes, rows.whole, texts, strict=True)
    before = [98] if purpose == "classify" else []
    after = [98] if purpose == "seq2seq" else []
    for row, there, sizes, whole, text in read:
        room = length - len(before) - len(after)
        expected = [*before, *encode(text[:room]).tolist(), *after]
        assert row.tolist() == expected + [PAD] * (length - len(expected))
        assert there.tolist() == [1] * len(expected) + [0] * (length - len(expected))
        ours = [1 if c in ALPHABET else 0 for c in text[:room]]
        assert sizes.tolist() == [0] * len(before) + ours + [0] * (length - len(before) - len(ours))
        lost = any(c not in ALPHABET and c != "\t" for c in text)
        assert whole == (len(text.rstrip()) <= room and not lost)


def test_rows_are_the_same_however_many_are_made_at_once(monkeypatch):
    texts = ["one", "", "zwei drei", "四", "a longer text than fits", "\x00"]
    for symbols in (characters("classify"), utf8_bytes("seq2seq")):
        whole = token_rows(symbols, texts, 12)
        with monkeypatch.context() as patch:
            patch.setattr("fedprune.tasks.token_rows._AT_ONCE", 4)
            pieces = token_rows(symbols, texts, 12)
        for name in ("ids", "sizes", "attention", "whole", "spans"):
            assert torch.equal(getattr(whole, name), getattr(pieces, name)), name
        read, again = ({**vars(rows.coverage)} for rows in (whole, pieces))
        assert torch.equal(read.pop("complete"), again.pop("complete"))
        assert read == again


@given(ANY)
def test_of_an_alphabet_only_what_is_known_stands_for_bytes(text):
    read = ids_of_text(characters("causal"), text)
    assert read.sizes.tolist() == [int(c in ALPHABET) for c in text]
    assert read.coverage.characters == len(text)
    assert read.coverage.unknown == sum(c not in ALPHABET for c in text)


@example("<pad></s><unk> \ufffd \x00\r\n")
@given(ANY)
def test_bytes_know_every_text_and_give_it_back(text):
    for purpose in PURPOSES:
        symbols = utf8_bytes(purpose)
        read = ids_of_text(symbols, text)
        assert (read.ids - FIRST_BYTE).tolist() == list(text.encode())
        assert read.sizes.tolist() == [1] * len(text.encode())
        assert read.coverage.unknown == 0
        marked = symbols.tokenizer(text)["input_ids"]
        assert symbols.tokenizer.decode(marked, skip_special_tokens=True) == text
        plain = symbols.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert plain == read.ids.tolist()


@given(st.lists(st.integers(0, 258), max_size=20))
def test_any_bytes_decode_to_a_text(ids):
    symbols = utf8_bytes("seq2seq")
    text = symbols.tokenizer.decode(ids, skip_special_tokens=True)
    data = bytes(i - FIRST_BYTE for i in ids if FIRST_BYTE <= i < FIRST_BYTE + 256)
    assert text == data.decode("utf-8", "replace") or "\ufffd" in text
    text.encode()


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_tokenizer_of_bytes_is_the_same_after_a_trip_to_disk(purpose, tmp_path):
    from transformers import AutoTokenizer

    symbols, texts = utf8_bytes(purpose), ["日本 ñ <s> 👩‍👩‍👧\n", "x", ""]
    symbols.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    rows = token_rows(symbols, texts, 20)
    given_ = again(texts, truncation=True, padding="max_length", max_length=20)
    assert given_["input_ids"] == rows.ids.tolist()
    assert rows.whole.tolist() == [False, True, True]
    assert again.decode(again(texts[0])["input_ids"], skip_special_tokens=True) == texts[0]
    assert len(again) == symbols.size == 258 + len(MARKS[purpose])


def test_half_a_surrogate_pair_is_a_question_mark():
    read = ids_of_text(utf8_bytes("causal"), "a\ud83d")
    assert (read.ids - FIRST_BYTE).tolist() == list(b"a?")
    assert token_rows(utf8_bytes("seq2seq"), ["a\ud83d"], 8).ids[0, 1] == FIRST_BYTE + ord("?")


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
def made(tmp_path_factory) -> dict[str, Symbols]:
    return {kind: pieces(tmp_path_factory.mktemp(kind), kind) for kind in ("bytes", "words")}


@given(text=st.text(alphabet="the north—élñ日 \n,", max_size=60))
def test_tokens_of_bytes_stand_for_all_bytes_once(text, made):
    read = ids_of_text(made["bytes"], text)
    assert len(read.ids) == len(read.sizes)
    assert int(read.sizes.sum()) == len(text.encode())
    assert made["bytes"].tokenizer.decode(read.ids) == text
    assert read.coverage.unknown == 0


def test_spaces_that_a_tokenizer_drops_go_to_the_token_that_follows(made):
    read = ids_of_text(made["words"], "the  the thane ")
    ids, sizes = read.ids, read.sizes
    assert sizes.tolist()[:2] == [3, 5]
    assert int(sizes.sum()) == len("the  the thane")
    assert ids[0] == ids[1]


def test_a_tokenizer_without_padding_pads_with_its_end(made):
    assert made["bytes"].pad == made["bytes"].end
    assert made["words"].pad == 0
    assert made["words"].mask is None
    rows = token_rows(made["bytes"], ["the", "the thane of the north"], 12)
    ids, attention = rows.ids, rows.attention
    assert attention[0].sum() < 12
    assert (ids[0][attention[0] == 0] == made["bytes"].pad).all()


def test_a_text_longer_than_the_model_reads_is_no_warning(made, capfd):
    ids = ids_of_text(made["bytes"], "日本 " * 50).ids
    assert len(ids) > 32
    assert capfd.readouterr() == ("", "")
    assert torch.is_tensor(ids)


@pytest.mark.parametrize("text", ["the thane", "the 中文字 thane", "😀", "  the\tñorth 😀😀 the"])
def test_what_a_tokenizer_does_not_know_is_counted(text, made):
    symbols = made["words"]
    given_ = symbols.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    known = {
        i
        for one, (start, end) in zip(given_["input_ids"], given_["offset_mapping"], strict=True)
        for i in range(start, end)
        if one != symbols.unknown
    }
    letters = [i for i, c in enumerate(text) if not c.isspace()]
    for read in (ids_of_text(symbols, text), token_rows(symbols, [text, "the"], 24)):
        extra = 3 * (read.ids.dim() - 1)  # of the second text
        assert read.coverage.characters == len(letters) + extra
        assert read.coverage.unknown == len(set(letters) - known)
        assert bool(read.coverage.complete[0]) == (set(letters) <= known)
        assert (read.sizes[read.ids == symbols.unknown] == 0).all()
        if set(letters) <= known:
            assert int(read.sizes.sum()) == len(text.encode()) + extra


def test_families_read_bytes_of_own_texts_and_characters_of_plays(asked):
    assert symbols_of(asked("text-to-text"), "seq2seq").kind == "bytes"
    assert symbols_of(asked("shakespeare-restore"), "seq2seq").kind == "characters"
