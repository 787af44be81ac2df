import pytest
import torch
from datasets import Dataset

from fedprune import federate
from fedprune.config import configure
from fedprune.tasks.coverage import reading_of, reading_summary
from fedprune.tasks.losses import label_tokens
from fedprune.tasks.task import examples
from fedprune.tasks.tokenization import FIRST_BYTE, characters, own_symbols, utf8_bytes
from fedprune.tasks.userdata import (
    hidden_shards,
    labelled_shards,
    names_of_classes,
    one_text,
    pair_shards,
    stream_shards,
    streams,
)
from tests.tasks.rows import ROWS

MAKERS = {
    "text-classification": labelled_shards,
    "language-modelling": stream_shards,
    "masked-language-modelling": hidden_shards,
    "text-to-text": pair_shards,
}


def test_a_txt_file_has_no_label(tmp_path, asked):
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"label-column='label': no such column .*allowed: text"):
        labelled_shards(asked("text-classification", data=str(tmp_path / "rows.txt")))


def test_classes_are_the_sorted_labels_of_the_file(rows_file, asked, tmp_path):
    config = asked("text-classification", data=str(rows_file))
    assert names_of_classes(config) == ["10", "bad", "good"]
    shards = labelled_shards(config)
    everything = torch.cat([p["labels"] for s in shards for p in (s.train, s.validation, s.test)])
    assert everything.bincount().tolist() == [20, 20, 20]
    path = tmp_path / "same.csv"
    path.write_text("text,same\none,x\ntwo,x\n")
    config = asked("text-classification", data=str(path), label_column="same")
    with pytest.raises(ValueError, match=r"label-column='same': .*same label"):
        names_of_classes(config)


def test_a_row_keeps_its_text_and_its_label(rows_file, asked):
    pairs = {(row["text"], row["label"]) for row in ROWS}
    config = asked("text-classification", data=str(rows_file), length=64)
    names, tokenizer = names_of_classes(config), utf8_bytes("classify").tokenizer
    for shard in labelled_shards(config):
        for ids, label in zip(shard.train["inputs"], shard.train["labels"], strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert (text, names[label]) in pairs


@pytest.mark.parametrize("split", ["iid", "natural"])
def test_a_stream_is_the_rows_of_a_client_in_their_order(split, rows_file, asked):
    column = "client" if split == "natural" else None
    config = asked("language-modelling", data=str(rows_file), split=split, client_column=column)
    found = streams(config)
    lines = [text.splitlines() for text in found]
    if split == "natural":
        expected = [[r["text"] for r in ROWS if r["client"] == f"c{i}"] for i in range(4)]
        assert sorted(lines) == sorted(expected)
    else:
        assert sorted(t for own in lines for t in own) == sorted(r["text"] for r in ROWS)
    shards = stream_shards(config)
    for text, shard in zip(found, shards, strict=True):
        labels = shard.train["labels"]
        train = len(text) - 2 * (len(text) // 10)
        assert labels[labels != -100].tolist() == [FIRST_BYTE + b for b in text.encode()[1:train]]


def test_pairs_keep_together(rows_file, asked):
    tokenizer = utf8_bytes("seq2seq").tokenizer
    config = asked("text-to-text", data=str(rows_file), length=64)
    for shard in pair_shards(config):
        for ids, labels in zip(shard.train["inputs"], shard.train["labels"], strict=True):
            given = tokenizer.decode(ids, skip_special_tokens=True)
            wanted = tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
            assert wanted == given.upper()


@pytest.mark.parametrize("task", MAKERS)
def test_every_part_of_every_client_has_something_or_they_are_too_many(task, rows_file, asked):
    for shard in MAKERS[task](asked(task, data=str(rows_file))):
        assert min(map(examples, (shard.train, shard.validation, shard.test))) >= 1
    with pytest.raises(ValueError, match=r"clients=30: .*; allowed: at least 10 rows"):
        MAKERS[task](asked(task, data=str(rows_file), clients=30))


def test_a_stream_too_short_to_cut_is_refused(tmp_path, asked):
    (tmp_path / "a.txt").write_text("a\n" * 9)
    (tmp_path / "b.txt").write_text("\n" * 9)
    config = asked("language-modelling", data=str(tmp_path), clients=1)
    with pytest.raises(ValueError, match=r"clients=1: "):
        stream_shards(config)
    (tmp_path / "a.txt").write_text("ab\n" * 12)
    shards = stream_shards(config)
    assert [label_tokens(p) for p in (shards[0].train, shards[0].test)] == [29, 2]


def test_the_example_of_a_text_ends_as_the_model_s_own_tokenizer_ends_texts(tmp_path, asked):
    """T5 and BART pool the end as classifiers; the lengths are those of any example."""
    characters("seq2seq").tokenizer.save_pretrained(tmp_path)
    config = asked("text-classification", model=str(tmp_path), length=12)
    example = one_text(config)
    assert (example["inputs"] == own_symbols(str(tmp_path), config.task).end).sum() == 1
    others = one_text(asked("text-classification", length=12))
    assert {n: t.shape for n, t in example.items()} == {n: t.shape for n, t in others.items()}


@pytest.mark.parametrize("own", [False, True], ids=["bytes", "own tokenizer"])
def test_what_is_cut_or_unknown_is_counted_as_by_hand(own, tmp_path, asked):
    """Of texts with the lengths 1 to 40, of which some end in a letter that is not ASCII."""
    characters("classify").tokenizer.save_pretrained(tmp_path / "own")
    texts = ["x" * n + ("é" if n % 4 == 0 and n < 16 else "") for n in range(1, 41)]
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
    Dataset.from_list(rows).to_csv(tmp_path / "rows.csv", index=False)
    model = {"model": str(tmp_path / "own")} if own else {}
    config = asked("text-classification", data=str(tmp_path / "rows.csv"), length=24, **model)
    assert not reading_summary(reading_of(config))
    labelled_shards(config)
    room = 23  # a mark comes first
    cut = sum(len(text if own else text.encode()) > room for text in texts)
    seen = sum(min(len(text), room) for text in texts)
    found = reading_of(config)
    assert (found["texts"], found["cut"], found["unknown"]) == (40, cut, 3 if own else 0)
    assert found["characters"] == seen or not own
    lines = reading_summary(found)
    assert lines[-1] == f"cut at --length: {cut} of 40 texts"
    assert (f"unknown to the model's symbols: 3 of {seen}" in lines[0]) == own


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_what_is_left_out_of_texts_is_in_the_summary_and_the_report(tmp_path):
    rows = [{"text": "x" * 20, "label": "ab"[i % 2]} for i in range(40)]
    Dataset.from_list(rows).to_csv(tmp_path / "rows.csv", index=False)
    keys = {"task": "text-classification", "data": str(tmp_path / "rows.csv"), "length": 8}
    keys |= {"engine": "inline", "clients": 2, "cohort": 2, "rounds": 1, "warmup": 0}
    end = federate(configure({**keys, "local_steps": 1}), folder=tmp_path / "run")
    assert end.summary["reading"]["cut"] == 40
    page = (tmp_path / "run/report.html").read_text()
    assert "Not all text was read: cut at --length: 40 of 40 texts." in page
