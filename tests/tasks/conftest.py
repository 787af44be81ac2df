"""What tests of tasks share: what a task reads of a configuration, and a user's rows as files."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from fedprune.tasks.catalog import TASKS
from tests.tasks.rows import write_rows

Asked = Callable[..., Any]


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ROWS` as a jsonl file."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package is found, whatever its name."""

    def missing(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)


@pytest.fixture(scope="session")
def asked() -> Asked:
    """The keys that tasks read, as a complete configuration would have them."""

    def made(task: str, **keys: Any) -> Any:
        given: dict[str, Any] = {
            **dict.fromkeys(("length", "depth", "width", "encoding", "small_owners")),
            **dict.fromkeys(("label_column", "target_column", "client_column")),
            **{"task": task, "clients": 4, "seed": 3, "split": "iid", "alpha": 0.5, "data": ""},
            **{"class_names": (), "metrics": "exact", "dp": "none", "panel": 0},
            "text_column": "text" if "text" in TASKS[task].columns else None,
            "model": next(iter(TASKS[task].models)),
        }
        return SimpleNamespace(**{**given, **TASKS[task].defaults, **keys})

    return made
