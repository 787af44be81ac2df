"""What tests of tasks share: what a task reads of a configuration, and a user's rows as files."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedprune.tasks.catalog import TASKS
from tests.tasks.rows import write_rows

Asked = Callable[..., Any]


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ROWS` as a jsonl file."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="session")
def asked() -> Asked:
    """The keys that tasks read, as a complete configuration would have them."""

    def made(task: str, **keys: Any) -> Any:
        given: dict[str, Any] = {
            "task": task,
            "clients": 4,
            "seed": 3,
            "alpha": 0.5,
            "length": None,
            "depth": None,
            "width": None,
            "data": "",
            "encoding": None,
            "text_column": "text" if "text" in TASKS[task].columns else None,
            "label_column": None,
            "target_column": None,
            "client_column": None,
            "class_names": (),
            "small_owners": None,
            "metrics": "exact",
            "dp": "none",
            "panel": 0,
            "split": "iid",
            "model": next(iter(TASKS[task].models)),
        }
        return SimpleNamespace(**{**given, **TASKS[task].defaults, **keys})

    return made
