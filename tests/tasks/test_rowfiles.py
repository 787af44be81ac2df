"""What stands in a file is what a task gets, whatever kind of file it is and wherever it stands."""

import csv
import json
from pathlib import Path

import pytest
from datasets import Dataset

from fedprune.tasks.cells import as_list, as_number, cell_text
from fedprune.tasks.tables import column, read_table

CELLS = [
    "007", "7", "0.10", "0.1", "0.100", "2024-01-02", "true", "True", "NA", "null", "1e5", "1.0",
]  # fmt: skip
CELLS += [
    "12345678901234567890123", "-0", " spaced ", "", "two\nlines", 'a "quote"', "a,b;c", "1_000",
]  # fmt: skip
CELLS += ["é", "e\u0301", "中文", "\u2028", "x" * 200_000, "0x10", "inf", "NaN", "+1", "u4"]


def written(folder: Path, kind: str, cells: list[str], columns: int = 2) -> Path:
    path = folder / f"rows.{kind}"
    names = [f"c{i}" for i in range(columns)]
    rows = [[cell] * columns for cell in cells]
    if kind == "jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines))
    elif kind == "parquet":
        Dataset.from_dict(dict.fromkeys(names, cells)).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([names, *rows])
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_cell_is_the_text_that_was_written(kind, tmp_path):
    table = read_table(str(written(tmp_path, kind, CELLS)))
    assert column(table, "text-column", "c0") == column(table, "text-column", "c1") == CELLS


def test_a_number_of_json_is_the_text_of_its_digits(tmp_path):
    path = tmp_path / "a.jsonl"
    raw = ["0.10", "0.1", "7", "1e5", "12345678901234567890123", "true", "null", "NaN", '"007"']
    path.write_text("".join(f'{{"a": {cell}}}\n\n' for cell in raw) + '{"b": ["x", 0.10]}')
    table = read_table(str(path))
    assert column(table, "label-column", "a") == [*raw[:6], "", "NaN", "007", ""]
    assert table["b"] == [None] * 9 + [["x", "0.10"]]
    (tmp_path / "a.json").write_text(json.dumps([{"a": 1}, {"a": [2]}], indent=1))
    with pytest.raises(ValueError, match=r"label-column='a': row 2: \['2'\] is not a text"):
        column(read_table(str(tmp_path / "a.json")), "label-column", "a")


def test_a_number_of_parquet_is_a_text_too(tmp_path):
    Dataset.from_dict({"a": [3, -1, None], "b": [0.5, 1e-07, 2.0]}).to_parquet(
        tmp_path / "a.parquet"
    )
    table = read_table(str(tmp_path))
    assert column(table, "label-column", "a") == ["3", "-1", ""]
    assert column(table, "label-column", "b", as_number) == [0.5, 1e-7, 2.0]


@pytest.mark.slow
def test_nothing_depends_on_where_a_row_stands_or_on_the_order_of_files_and_columns(tmp_path):
    first, second = ["007", "u1"] * 10_000, ["007", "008"] * 10_000
    (tmp_path / "one.csv").write_text("\n".join(["id,t", *(f"{i},x" for i in first + second)]))
    assert column(read_table(str(tmp_path / "one.csv")), "o", "id") == first + second
    (tmp_path / "two").mkdir()
    for names in (("a", "b"), ("b", "a")):
        for name, cells in zip(names, (first, second), strict=True):
            lines = ["t,id", *(f"x,{i}" for i in cells)]
            turned = [",".join(reversed(line.split(","))) for line in lines]
            (tmp_path / "two" / f"{name}.csv").write_text(
                "\n".join(turned if name == "a" else lines)
            )
        table = read_table(str(tmp_path / "two"))
        assert sorted(column(table, "o", "id")) == sorted(first + second)
        assert set(table["t"]) == {"x"}


ONE, OTHER = '{"text": "one, two", "label": "0,5"}', '{"label": "0,50", "text": "three"}'
STYLES: dict[str, tuple[str, str]] = {
    "semicolons": ("a.csv", "text;label\none, two;0,5\nthree;0,50\n"),
    "tabs in csv": ("a.csv", "text\tlabel\none, two\t0,5\nthree\t0,50\n"),
    "bars": ("a.csv", "text|label\none, two|0,5\nthree|0,50\n"),
    "commas in tsv": ("a.tsv", 'text,label\n"one, two","0,5"\nthree,"0,50"\n'),
    "spaces": ("a.csv", 'text, label\n"one, two", "0,5"\nthree, "0,50"\n'),
    "spaces around names": ("a.csv", ' text ,label \n"one, two","0,5"\nthree,"0,50"\n'),
    "an index": ("a.csv", ',text,label\n0,"one, two","0,5"\n1,three,"0,50"\n'),
    "empty lines": ("a.csv", '\ntext,label\n\n"one, two","0,5"\n  \nthree,"0,50"\n,,,\n\n'),
    "carriage returns": ("a.csv", 'text,label\r\n"one, two","0,5"\r\nthree,"0,50"\r\n'),
    "old Macs": ("a.csv", 'text,label\r"one, two","0,5"\rthree,"0,50"\r'),
    "a list": ("a.json", f"[{ONE}, {OTHER}]"),
    "lines in json": ("a.json", f"{ONE}\n{OTHER}"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_seen(style, encoding, tmp_path):
    name, content = STYLES[style]
    (tmp_path / name).write_bytes(content.encode(encoding))
    table = read_table(str(tmp_path))
    assert dict(table) == {"text": ["one, two", "three"], "label": ["0,5", "0,50"]}


@pytest.mark.parametrize(
    "encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16", "shift_jis", None]
)
def test_a_file_is_read_in_the_encoding_that_is_asked(encoding, tmp_path):
    text = "テキスト" if encoding == "shift_jis" else "naïve café"
    (tmp_path / "a.csv").write_bytes(f"text\n{text}\n".encode(encoding or "utf-8"))
    assert read_table(str(tmp_path), encoding)["text"] == [text]


@pytest.mark.parametrize(
    ("written_in", "asked", "message"),
    [
        ("utf-8-sig", "latin-1", r"begins with the mark of utf-8-sig; allowed: no --encoding"),
        ("utf-8", "utf-16", r"has no mark of utf-16; allowed: utf-16-le, "),
        ("utf-8", "ascii", r"is not ascii: byte 0xc3 in line 2, ordinal"),
        ("utf-16-le", "latin-1", r"has bytes of zero and is not iso8859-1; allowed: --encoding"),
    ],
)
def test_another_encoding_is_one_line(written_in, asked, message, tmp_path):
    (tmp_path / "a.txt").write_bytes("one\nnaïve\n".encode(written_in))
    with pytest.raises(ValueError, match=rf"data='.*': a.txt {message}"):
        read_table(str(tmp_path), asked)


def test_the_limit_of_the_csv_module_is_as_it_was(tmp_path):
    before = csv.field_size_limit()
    read_table(str(written(tmp_path, "csv", CELLS)))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("cell", "number"), [("3", 3.0), (" -0.50 ", -0.5), ("1e-3", 0.001), (".5", 0.5)]
)
def test_a_number_is_read_from_its_text(cell, number):
    assert as_number(cell) == number


@pytest.mark.parametrize(
    "cell", ["1,5", "nan", "inf", "1_000", "", "x", "1e999", "٣", ["1"], True, None]
)
def test_what_is_no_number_is_named_with_its_row(cell):
    with pytest.raises(ValueError, match=r"label-column='y': row 2: .*; allowed: "):
        column({"y": ["1", cell]}, "label-column", "y", as_number)


def test_a_list_is_read_as_texts():
    assert as_list(["a", "0.10", True]) == as_list('["a", 0.10, true]') == ["a", "0.10", "true"]
    for cell in ("a b", "{}", [["a"]], None):
        with pytest.raises(ValueError, match="allowed: "):
            as_list(cell)
    assert [cell_text(cell) for cell in (None, False, "", 3)] == ["", "false", "", "3"]
