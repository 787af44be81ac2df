import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.tasks import tagging
from fedprune.tasks.cells import NotRows
from fedprune.tasks.rowfiles import read_conll
from fedprune.tasks.tagging import entities, entity_sums, frequent_tag_alone, tagged_rows
from fedprune.tasks.tokenization import Symbols, characters, utf8_bytes

TAGS = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b", "E-a", "S-b"]), max_size=9)


@given(TAGS)
def test_entities_are_runs_of_one_kind_that_no_beginning_or_end_cuts(tags):
    """As a pattern over two letters a word: E and S close, B and S open, kinds do not mix."""
    text = "".join(tag.replace("-", "") if tag != "O" else "O_" for tag in tags)
    pattern = re.compile(r"S[ab]|(?:[BI](?P<k>[ab]))(?:I(?P=k))*(?:E(?P=k))?|E[ab]")
    found, at = set(), 0
    while at < len(text):
        match = pattern.match(text, at)
        if match:
            found.add((text[at + 1], at // 2, match.end() // 2))
        at = match.end() if match else at + 2
    assert entities(tags) == found


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["B-PER", "I-PER", "O", "I-LOC"], {("PER", 0, 2), ("LOC", 3, 4)}),
        (["I-PER", "B-PER"], {("PER", 0, 1), ("PER", 1, 2)}),  # the older kind of BIO
        (["B", "I", "O", "B"], {("", 0, 2), ("", 3, 4)}),
        (["NN", "NN", "B-part"], {("NN", 0, 1), ("NN", 1, 2), ("part", 2, 3)}),
        (["B-x-y", "I-x-y"], {("x-y", 0, 2)}),
        (["U-a", "B-a", "L-a", "L-a"], {("a", 0, 1), ("a", 1, 3), ("a", 3, 4)}),
    ],
)
def test_other_ways_to_write_tags(tags, found):
    assert entities(tags) == found


def test_only_words_count_for_entities():
    names = {0: "O", 1: "B-a", 2: "I-a"}
    labels = torch.tensor([[-100, 1, -100, 2, 0, -100], [1, 1, 0, -100, -100, -100]])
    guess = torch.tensor([[1, 1, 0, 2, 0, 1], [1, 0, 1, 1, 1, 1]])
    assert entity_sums(guess, {"labels": labels}, names) == {
        "entities_right": 2.0,
        "entities_found": 3.0,
        "entities": 3.0,
    }


WORDS = [["To", "be,", "or"], ["New York", "x"]]


def test_a_word_has_its_tag_at_its_first_token():
    rows, labels = tagged_rows(characters("tag"), WORDS, [[1, 2, 3], [4, 5]], 12)
    assert labels.tolist() == [
        [1, -100, -100, 2, -100, -100, -100, 3, -100, -100, -100, -100],
        [4, -100, -100, -100, -100, -100, -100, -100, -100, 5, -100, -100],
    ]
    assert rows.attention.sum(1).tolist() == [9, 10]
    _, cut = tagged_rows(characters("tag"), WORDS, [[1, 2, 3], [4, 5]], 8)
    assert (cut >= 0).sum(1).tolist() == [3, 1]


def test_a_word_of_several_bytes_has_its_tag_at_its_first_byte():
    _, labels = tagged_rows(utf8_bytes("tag"), [["\u00e9\u4e16", "a"]], [[1, 2]], 8)
    assert labels.tolist() == [[1, *[-100] * 5, 2, -100]]  # two bytes, three bytes, a space


class Spaced:
    """A tokenizer as SentencePiece's: the space before a word belongs to its first token."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        spans = [[m.span() for m in re.finditer(r" ?\w{1,2}|[^\w ]", text)] for text in texts]
        size = max(map(len, spans)) + 1
        padded = [[(0, 0), *row, *[(0, 0)] * (size - 1 - len(row))] for row in spans]
        ids = [[1] * size] * len(texts)
        return {"input_ids": ids, "attention_mask": ids, "offset_mapping": padded}


def test_a_space_that_a_token_begins_with_does_not_move_its_word():
    spaced = Symbols(9, 0, Spaced(), "own", 0)
    _, labels = tagged_rows(spaced, [["Anna", "Bo!"]], [[3, 4]], 6)
    assert labels.tolist() == [[-100, 3, -100, 4, -100]]


def test_a_conll_file_is_sentences(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text("-DOCSTART- -X- O\n\nAnna NNP B-PER\n# SYM O\n\n\nBo\tNNP\tB-PER\n")
    assert read_conll(path, None) == {
        "tokens": [["Anna", "#"], ["Bo"]],
        "tags": [["B-PER", "O"], ["B-PER"]],
    }
    path.write_text("Anna\n")
    with pytest.raises(NotRows, match="line 1 has one word alone"):
        read_conll(path, None)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "sentence 21 has 2 words and 1 tag;"),
        ('{"tokens": ["a", " "], "tags": ["O", "O"]}', "sentence 21 has an empty word"),
        ('{"tokens": "a b", "tags": ["O", "O"]}', "row 21: 'a b' is not a list"),
    ],
)
def test_words_and_tags_that_do_not_fit_are_named(tmp_path, asked, row, what):
    path = tmp_path / "x.jsonl"
    path.write_text('{"tokens": ["a", "b"], "tags": ["O", "B-x"]}\n' * 20 + row + "\n")
    with pytest.raises(ValueError, match=re.escape(what)):
        tagging._shards(asked("token-classification", data=str(path), length=8))


def test_the_most_frequent_tag_finds_nothing_where_it_is_none():
    counts = torch.tensor([1.0, 1.0, 8.0])
    assert frequent_tag_alone(counts, counts, ["B-a", "I-a", "O"]) == {
        "accuracy": 0.8,
        "entity_f1": 0.0,
    }
    assert frequent_tag_alone(counts, counts, ["JJ", "NN", "VB"]) == {"accuracy": 0.8}
