import json
from pathlib import Path

import pytest

from fedprune.compression.manifest import MANIFEST_NAME, read_manifest, sha256_of, write_manifest

ABOUT = {"task": "digits", "plugin": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.bin").write_bytes(b"abc")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    write_manifest(tmp_path, ABOUT)
    return tmp_path


def test_every_file_has_its_digest(folder: Path):
    about = read_manifest(folder)
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # NIST's for "abc"
    assert about["files"] == {"b.bin": sha256_of(folder / "b.bin"), "inside/a.bin": known}
    assert {key: about[key] for key in ABOUT} == ABOUT


def test_any_flipped_bit_of_any_file_is_found_and_the_file_named(folder: Path):
    for name in ("inside/a.bin", "b.bin"):
        whole = (folder / name).read_bytes()
        for place in range(len(whole)):
            hurt = bytearray(whole)
            hurt[place] ^= 1
            (folder / name).write_bytes(hurt)
            with pytest.raises(ValueError, match=f"{name}: damaged or foreign"):
                read_manifest(folder)
        (folder / name).write_bytes(whole)
    read_manifest(folder)


def test_a_file_that_is_gone_is_named_and_one_that_came_is_not_looked_at(folder: Path):
    (folder / "README").write_text("mine")
    read_manifest(folder)
    (folder / "b.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.bin: gone"):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["[]", "{}", json.dumps({"task": "digits"})])
def test_a_foreign_manifest_is_named_so(tmp_path: Path, text: str):
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"fedprune\.json: not a fedprune manifest"):
        read_manifest(tmp_path)


def test_a_damaged_manifest_is_named_so(tmp_path: Path):
    (tmp_path / MANIFEST_NAME).write_text('{"task": ')
    with pytest.raises(ValueError, match=r"fedprune\.json: damaged, it is not JSON"):
        read_manifest(tmp_path)
