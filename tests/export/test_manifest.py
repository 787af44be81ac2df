import json
from pathlib import Path

import pytest

from fedprune.export.manifest import MANIFEST_NAME, _digest_of, read_manifest, write_manifest
from fedprune.runtime.sums import sha256_of

ABOUT = {"task": "digits", "plugin": ""}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.bin").write_bytes(b"abc")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    write_manifest(tmp_path, ABOUT)
    return tmp_path


def test_every_file_has_its_digest(folder):
    about = read_manifest(folder)
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # NIST's for "abc"
    assert about["files"] == {"b.bin": sha256_of(folder / "b.bin"), "inside/a.bin": known}
    assert about == {**ABOUT, "files": about["files"]}


def test_any_flipped_bit_of_any_file_is_found_and_the_file_named(folder):
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


def test_a_file_that_is_gone_is_named_and_one_that_came_is_not_looked_at(folder):
    (folder / "README").write_text("mine")
    read_manifest(folder)
    (folder / "b.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.bin: gone"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        *((text, "not a fedprune manifest") for text in ("[]", "{}", '{"task": "digits"}')),
        ('{"task": ', "damaged, it is not JSON"),
    ],
)
def test_a_foreign_or_damaged_manifest_is_named_so(tmp_path, text, what):
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"fedprune\.json: {what}"):
        read_manifest(tmp_path)


def test_any_changed_character_of_the_manifest_itself_is_found_and_it_is_named(folder):
    path = folder / MANIFEST_NAME
    text = path.read_text()
    for place, character in enumerate(text):
        path.write_text(text[:place] + ("x" if character != "x" else "y") + text[place + 1 :])
        if not character.isspace():
            with pytest.raises(ValueError, match=r"fedprune\.json: (damaged|not a fedprune)"):
                read_manifest(folder)


CHANGES = [
    *({"files": value} for value in (None, [], "x", {}, {"b.bin": 1})),
    *({"to": value} for value in ([], {}, "sparse", None)),
    *({"sha256": value} for value in (None, [])),
    *({"config": 3}, {"quantised": "x"}, {"shapes": {"w": [1]}}, {"ties": {"a": "b"}}),
    *({"class": "Nothing"}, {"edits": [{"kind": "head"}]}),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_is_changed_in_a_manifest_is_a_line_that_names_it(folder, change):
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"^[^\n]*fedprune\.json: damaged or changed[^\n]*$"):
        read_manifest(folder)


def test_its_white_space_and_order_say_nothing(folder):
    path = folder / MANIFEST_NAME
    said = read_manifest(folder)
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=4))
    assert read_manifest(folder) == said


@pytest.mark.parametrize("name", ["../b.bin", "inside/../../b.bin", "/dev/zero"])
def test_a_file_of_another_folder_is_not_even_read(tmp_path, name):
    said = {**ABOUT, "files": {name: "0" * 64}}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**said, "sha256": _digest_of(said)}))
    with pytest.raises(ValueError, match=r"fedprune\.json: foreign, it names a file of another"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.fedprune", "model.onnx"])
def test_weights_that_it_does_not_name_are_refused(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{name}: foreign"):
        read_manifest(folder)
