"""Small files that claim a lot are refused by name, in a moment and a few MB."""

import gzip
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune.config import configure
from fedprune.tasks import unpacked
from fedprune.tasks.claims import check_config
from fedprune.tasks.imagefolder import pixels
from fedprune.tasks.images import local_images, read_idx_folder
from fedprune.tasks.rowfiles import READERS
from fedprune.tasks.unpacked import arrays_in, gunzipped

SMALL = 2**20


def header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return out.getvalue()


def npz(path: Path, **parts: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(f"{name}.npy", data)


def zeros_in_npz(folder: Path) -> None:
    np.savez_compressed(folder / "a.npz", images=np.zeros((99, 500, 500)), labels=np.zeros(99, int))


def shape_in_npz(folder: Path) -> None:
    npz(folder / "a.npz", images=header((10**6, 10**6)) + bytes(9), labels=header((9,)) + bytes(9))


def zeros_in_idx(folder: Path) -> None:
    size = 50 * SMALL
    data = b"\0\0\x08\3" + struct.pack(">3I", size // 2**10, 32, 32) + bytes(size)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(data))


def shape_in_idx(folder: Path) -> None:
    data = b"\0\0\x08\3" + struct.pack(">3I", 2**30, 2**10, 2**10) + bytes(99)
    (folder / "train-images-idx3-ubyte").write_bytes(data)


def picture(folder: Path) -> None:
    def part(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = struct.pack(">2I5B", 12_000, 12_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(99))
    parts = part(b"IHDR", head) + part(b"IDAT", rows) + part(b"IEND", b"")
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def keys_of_their_own(folder: Path) -> None:
    rows = (json.dumps({f"k{i}": 1}) for i in range(700))
    (folder / "a.jsonl").write_text("\n".join(rows))


def wide_and_long(folder: Path) -> None:
    first = json.dumps({f"k{i}": 1 for i in range(700)})
    (folder / "a.json").write_text(first + "\n{}" * 700)


def repeated(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    values = pyarrow.array(["x" * 10_000] * 4_000).dictionary_encode().cast(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": values}), folder / "a.parquet")


def no_columns_of_a_word(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    nothing = pyarrow.nulls(10**7)
    parquet.write_table(pyarrow.table({"text": nothing}), folder / "a.parquet")


def rows_in(name: str) -> Callable[[Path], Any]:
    return lambda folder: READERS[Path(name).suffix](folder / name, None)


IMAGES = configure({"task": "digits", "model": "mlp", "clients": 2, "cohort": 2})
CLAIMS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any], str]] = {
    "npz": (
        zeros_in_npz,
        lambda f: local_images(f, IMAGES, side=500),
        "a.npz: .* bytes that claim",
    ),
    "shape in npz": (
        shape_in_npz,
        lambda f: local_images(f, IMAGES, side=500),
        "a.npz: images.npy of shape",
    ),
    "idx": (zeros_in_idx, read_idx_folder, "train-images-idx3-ubyte.gz: .* bytes that claim"),
    "shape in idx": (shape_in_idx, read_idx_folder, "train-images-idx3-ubyte: not an IDX"),
    "png": (picture, lambda f: pixels(str(f / "a.png"), 8, grey=True), "a.png: .* that claim"),
    "jsonl": (keys_of_their_own, rows_in("a.jsonl"), r"a.jsonl: .* \(\d+ rows of \d+ columns"),
    "json": (wide_and_long, rows_in("a.json"), r"a.json: .* \(\d+ rows of 700 columns"),
    "parquet": (repeated, rows_in("a.parquet"), "a.parquet: .* bytes that claim"),
    "nulls": (no_columns_of_a_word, rows_in("a.parquet"), "a.parquet: .* rows of 1 columns"),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CLAIMS)
def test_what_claims_more_than_its_bytes_can_hold_is_refused_by_name(name, tmp_path, monkeypatch):
    """With less to spare than there is, so that the test's own files are small."""
    make, read, said = CLAIMS[name]
    make(tmp_path)
    monkeypatch.setattr(unpacked, "_FREE", SMALL)
    tracemalloc.start()
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 40 * SMALL


def test_what_is_honest_is_read(tmp_path):
    images, labels = np.arange(4 * 9 * 9.0).reshape(4, 9, 9), np.arange(4)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images=images, labels=labels)
        found = arrays_in(tmp_path / "a.npz")
        assert np.array_equal(found["images"], images)
        assert np.array_equal(found["labels"], labels)
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"honest" * 99))
    assert gunzipped(tmp_path / "b.gz") == b"honest" * 99


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY", b"x" * 99])
def test_what_is_no_npz_is_refused_by_name(data, tmp_path):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz: "):
        arrays_in(tmp_path / "a.npz")
    npz(tmp_path / "a.npz", images=data)
    with pytest.raises(ValueError, match=r"a\.npz: "):
        arrays_in(tmp_path / "a.npz")


def test_a_long_tokenizer_is_refused_by_name(tmp_path):
    for name in ("tokenizer.json", "vocab.txt", "spiece.model"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**26 + 1)
        with pytest.raises(ValueError, match=f"{name}: longer than"):
            check_config(tmp_path)
        (tmp_path / name).unlink()
