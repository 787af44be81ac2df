import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprune.tasks import images
from fedprune.tasks.images import fashion_mnist, local_images, read_idx_folder
from fedprune.tasks.task import examples
from tests.runs import tiny

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GEN = np.random.default_rng(0)


def idx(values: np.ndarray) -> bytes:
    return (
        struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
    )


def folder(path: Path, n: int, *, packed: bool = False) -> tuple[Path, np.ndarray, np.ndarray]:
    pictures = GEN.integers(0, 256, (n, 28, 28)).astype(np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    for name, values in ((IMAGES, pictures), (LABELS, labels)):
        raw = idx(values)
        target = path / (f"{name}.gz" if packed else name)
        target.write_bytes(gzip.compress(raw, 1, mtime=0) if packed else raw)
    return path, pictures, labels


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_gzipped_or_not(packed, tmp_path):
    path, pictures, labels = folder(tmp_path, 12, packed=packed)
    part = read_idx_folder(path)
    assert part["images"].shape == (12, 1, 28, 28)
    assert torch.equal(part["images"][:, 0], torch.from_numpy(pictures))
    assert part["labels"].dtype == torch.int64
    assert part["labels"].tolist() == labels.tolist()


@pytest.mark.parametrize("missing", [IMAGES, LABELS])
def test_a_missing_file_says_how_to_get_it(missing, tmp_path):
    folder(tmp_path, 12)
    (tmp_path / missing).unlink()
    message = rf"data={tmp_path}: no {missing}\[\.gz\] there; .*apt-get install dataset-fashion"
    with pytest.raises(FileNotFoundError, match=message):
        read_idx_folder(tmp_path)


GOOD = idx(np.zeros((3, 2, 2), np.uint8))
BAD = {
    "empty": b"", "short": GOOD[:3], "head cut": GOOD[:9], "values cut": GOOD[:-1],
    "values over": GOOD + b"x", "floats": b"\0\0\x0d" + GOOD[3:], "magic": b"\x01" + GOOD[1:],
    "no sizes": b"\0\0\x08\0", "html": b"<!DOCTYPE html><html></html>",
}  # fmt: skip


# Without the time in it: the processes of a test run have to find cases of the same name.
SPOILT = [
    *((IMAGES, raw) for raw in BAD.values()),
    *((f"{IMAGES}.gz", gzip.compress(raw, mtime=0)) for raw in BAD.values()),
    *((f"{IMAGES}.gz", raw) for raw in (b"not gzip at all", gzip.compress(GOOD, mtime=0)[:-9])),
]


@pytest.mark.parametrize(("name", "data"), SPOILT)
def test_a_bad_idx_file_is_named(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileNotFoundError, match=f"data={tmp_path / name}: .*IDX"):
        read_idx_folder(tmp_path)


def test_images_and_labels_of_different_numbers_are_refused(tmp_path):
    folder(tmp_path, 15)
    (tmp_path / LABELS).write_bytes(idx(np.zeros(14, np.uint8)))
    with pytest.raises(
        FileNotFoundError, match=rf"data={tmp_path}: images \(15, 28, 28\) and labels \(14,\)"
    ):
        read_idx_folder(tmp_path)


def test_fashion_mnist_reads_the_folder_it_is_given(tmp_path):
    folder(tmp_path, 200)
    shards = fashion_mnist(tiny(task="fashion-mnist", split="iid", data=str(tmp_path)))
    counts = [[examples(p) for p in (s.train, s.validation, s.test)] for s in shards]
    assert counts == [[32, 4, 4]] * 5


def test_fashion_mnist_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FASHION_FOLDER", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere: .*apt-get install"):
        fashion_mnist(tiny(task="fashion-mnist"))


def test_digits_are_1797_pictures_in_0_to_1():
    shards = images.digits(tiny(split="iid", alpha=None))
    parts = [p for s in shards for p in (s.train, s.validation, s.test)]
    everything = torch.cat([p["images"] for p in parts])
    assert everything.shape == (1797, 1, 8, 8)
    assert (everything.min(), everything.max()) == (0.0, 1.0)
    assert torch.cat([p["labels"] for p in parts]).unique().tolist() == list(range(10))
    assert [examples(s.test) for s in shards] == [36, 36, 35, 35, 35]
    assert [examples(s.train) for s in shards] == [288, 288, 289, 289, 289]


def test_digits_are_dealt_by_labels_under_dirichlet():
    shards = images.digits(tiny(alpha=0.1))
    most = [s.train["labels"].bincount().max().item() / examples(s.train) for s in shards]
    assert max(most) > 0.3
    assert sum(examples(p) for s in shards for p in (s.train, s.validation, s.test)) == 1797


def test_without_scikit_learn_digits_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(FileNotFoundError, match=r"task=digits: .*pip install scikit-learn"):
        images.digits(tiny())


def test_a_device_reads_every_npz_in_its_folder(tmp_path, asked):
    for name, n in (("b", 30), ("a", 20)):
        pictures = np.full((n, 8, 8), n / 100)
        np.savez(tmp_path / f"{name}.npz", images=pictures, labels=np.full(n, n % 7))
    shard = local_images(tmp_path, asked("digits"), side=8)
    parts = (shard.train, shard.validation, shard.test)
    assert [examples(p) for p in parts] == [40, 5, 5]
    assert all(p["images"].shape[1:] == (1, 8, 8) for p in parts)
    assert all(p["images"].dtype == torch.float32 for p in parts)
    labels = torch.cat([p["labels"] for p in parts])
    assert labels.bincount(minlength=7).tolist() == [0, 0, 30, 0, 0, 0, 20]
    values = torch.cat([p["images"][:, 0, 0, 0] for p in parts])
    assert torch.equal(values, torch.where(labels == 2, 0.3, 0.2)), "rows stay together"


def test_a_device_without_files_is_refused(tmp_path, asked):
    with pytest.raises(FileNotFoundError, match=rf"data={tmp_path}: no \*\.npz there"):
        local_images(tmp_path, asked("digits"), side=8)


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"labels": None}, "labels not there"),
        ({"labels": np.zeros(11)}, r"images \(12, 8, 8\) and labels \(11,\)"),
        ({"images": np.zeros((12, 8))}, r"images \(12, 8\)"),
        ({"images": np.zeros((12, 9, 9))}, r"images \(12, 9, 9\)"),
        ({"images": np.zeros((2, 8, 8)), "labels": np.zeros(2)}, "N at least 10"),
        ({"images": np.full((12, 8, 8), 255, np.uint8)}, "images from 255 to 255"),
        ({"images": np.full((12, 8, 8), np.nan)}, "images from nan to nan"),
        ({"images": np.zeros((12, 8, 8), complex)}, "images of type complex128"),
        ({"images": np.full((12, 8, 8), "0")}, "images of type <U1"),
        ({"labels": np.arange(12)}, "labels from 0 to 11"),
        ({"labels": np.full(12, 1.5)}, "labels that are no whole numbers"),
    ],
)
def test_a_device_with_odd_arrays_is_refused(arrays, what, tmp_path, asked):
    arrays = {"images": np.zeros((12, 8, 8)), "labels": np.zeros(12), **arrays}
    np.savez(tmp_path / "own.npz", **{n: a for n, a in arrays.items() if a is not None})
    with pytest.raises(FileNotFoundError, match=f"data={tmp_path}: .*{what}"):
        local_images(tmp_path, asked("digits"), side=8)
