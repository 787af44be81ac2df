import json

import pytest

from fedprune.tasks.tables import column, read_table, rows_with_text


def test_a_txt_file_has_a_row_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo, three\n")
    assert dict(read_table(str(tmp_path / "a.txt"))) == {"text": ["one", "", "two, three"]}


def test_a_folder_is_its_files_in_order_and_a_change_is_seen(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "README.md").write_text("not rows")
    assert read_table(str(tmp_path))["text"] == ["a", "b"]
    assert read_table(str(tmp_path)) is read_table(str(tmp_path)), "read once"
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "longer"}) + "\n")
    assert read_table(str(tmp_path))["text"] == ["a", "longer"]


WRONG: dict[str, tuple[dict[str, str | bytes], str]] = {
    "no file": ({}, r"no file that can be read; allowed: names that end in .csv, "),
    "unknown suffix": ({"rows.xls": "x"}, r"no file that can be read"),
    "two kinds": ({"a.csv": "text\nx\n", "b.txt": "x"}, r"files of several kinds \(.csv, .txt\)"),
    "empty": ({"a.csv": ""}, r"no rows; allowed: at least one"),
    "empty json": ({"a.jsonl": ""}, r"no rows"),
    "only a heading": ({"a.csv": "text,label\n"}, r"no rows"),
    "no object": ({"a.json": "[]"}, r"no rows"),
    "not json, further down": (
        {"a.jsonl": '{"a": 1}\n{"a":\n{"a": 3}\n'},
        r"a.jsonl, line 4: .* \(of what begins in line 2\)",
    ),
    "not json": ({"a.jsonl": '{"a": 1}\n{"x'}, r"a.jsonl, line 2: not json: Unterminated string"),
    "texts only": ({"a.jsonl": '{"a": 1}\n"b"'}, r"a.jsonl, row 2 is a text or a number; allowed"),
    "a name twice": ({"a.json": '[{"a": 1, "a": 2}]'}, r"line 1: 'a' is twice in one object"),
    "half a character": ({"a.jsonl": '{"a": "\\ud83d"}'}, r"row 1: 'a' holds half of a character"),
    "too deep": ({"a.jsonl": "[" * 200_000}, r"a.jsonl, line 1: "),
    "not parquet": ({"a.parquet": "PAR"}, r"a.parquet is not parquet: "),
    "other columns": (
        {"a.csv": "text\nx\n", "b.csv": "other,text\nx,y\n"},
        r"b.csv and a.csv differ in columns \(other\); allowed: the same in every file",
    ),
    "two of a name": ({"a.csv": "text,label, label\nx,1,2\n"}, r"has two columns 'label'"),
    "a long row": (
        {"a.csv": "text,label\nx,1\n\ny, z,2\n"},
        r"a.csv, line 4: 3 cells between ',', the heading has 2 \(text, label\); allowed: as many",
    ),
    "a short row": ({"a.tsv": "a\tb\nx\ty\nz\n"}, r"a.tsv, line 3: 1 cell between tabs, the hea"),
    "an open quote": ({"a.csv": 'a,b\nx,1\n"y,2\nz,3\n'}, r"row that begins in line 3: unexpected"),
    "a half quote": ({"a.csv": 'a,b\nx,1\n"y" z,2\n'}, r"row that begins in line 3: ',' expected"),
    "a merged row": ({"a.tsv": 'a\tb\n"x\t1\ny"\t2\n'}, r"a.tsv, line 2: a quote is not closed"),
    "latin-1": ({"a.csv": "text\na\nb\xe9\n".encode("latin-1")}, r"not utf-8: byte 0xe9 in line 3"),
    "no mark": ({"a.txt": "texts".encode("utf-16-le")}, r"bytes of zero and is not utf-8; allowed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_one_line(case, tmp_path):
    files, message = WRONG[case]
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(raw)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"data='.*': .*{message}") as caught:
        read_table(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert "allowed: " in str(caught.value)


@pytest.mark.parametrize("data", ["", "nowhere.csv"])
def test_a_path_that_is_not_there_is_one_line(data):
    with pytest.raises(FileNotFoundError, match=f"data='{data}': no such file or folder"):
        read_table(data)


def test_a_column_that_is_not_there_names_those_that_are(rows_file, asked):
    config = asked("text-classification", data=str(rows_file), label_column="topic")
    message = "label-column='topic': no such column in the data; allowed: text, label, "
    with pytest.raises(ValueError, match=message):
        rows_with_text(config, "label")
    assert column({"a": [None, 1]}, "text-column", "a") == ["", "1"]


def test_rows_without_a_text_are_left_out_of_every_column(tmp_path, asked):
    path = tmp_path / "a.csv"
    path.write_text("text,label\none,1\n  ,2\nthree,3\n,4\n")
    config = asked("text-classification", data=str(path))
    assert rows_with_text(config, "label") == {"text": ["one", "three"], "label": ["1", "3"]}
    path.write_text("text,label\n ,1\n")
    with pytest.raises(ValueError, match="no row has a text"):
        rows_with_text(config, "label")


def test_natural_without_a_column_is_refused(rows_file, asked):
    config = asked("language-modelling", split="natural", data=str(rows_file))
    with pytest.raises(ValueError, match=r"split='natural': .*allowed: --client-column COLUMN"):
        rows_with_text(config)
