"""Devices and workers of `tests.server.grids`, as fixtures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower import Flower
from flwr.app import Context
from sklearn.datasets import load_digits

from tests.server import grids
from tests.server.grids import FakeGrid, context


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    with grids.in_one_process():
        yield


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower's programs, all of them gone at the end."""
    made = Flower(tmp_path_factory.mktemp("network") / "flower")
    yield made
    made.stop()
    assert made.running() == []


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three devices' own folders, each with its own images, and an empty one."""
    data, root = load_digits(), tmp_path_factory.mktemp("devices")
    for i, (first, last) in enumerate([(0, 60), (60, 100), (100, 180)]):
        (root / str(i)).mkdir()
        images = data.images[first:last] / 16
        np.savez(root / str(i) / "own.npz", images=images, labels=data.target[first:last])
    (root / "empty").mkdir()
    return [root / name for name in ("0", "1", "2", "empty")]


def device(node: int, partition: int | str, folder: Path) -> Context:
    return context(node, **{"partition-id": partition, "data": str(folder)})


@pytest.fixture
def devices(folders: list[Path]) -> Callable[..., FakeGrid]:
    """A grid of devices; node 70 + p holds partition p, ids descending as partitions ascend."""

    def made(count: int = 2, **rest: Any) -> FakeGrid:
        return FakeGrid({79 - p: device(79 - p, p, folders[p]) for p in range(count)}, **rest)

    return made


@pytest.fixture
def workers() -> Callable[..., FakeGrid]:
    """A grid of a simulation's workers."""
    return grids.workers


@pytest.fixture
def joined() -> Callable[[int, int | str, Path], Context]:
    return device
