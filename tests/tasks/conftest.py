"""What tests of tasks share: what a task reads of a configuration, and a user's rows as files."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedprune.tasks.catalog import TASKS

Asked = Callable[..., Any]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "Two", "dogs", "run,", "who?"]


def text(i: int) -> str:
    return " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 6 + i % 4))


ROWS: list[dict[str, Any]] = [
    {
        "text": text(i),
        "label": ("good", "bad", "10")[i % 3],
        "value": 1000 + 5 * len(text(i)) - i % 3 / 4,
        "target": text(i).upper(),
        "topics": [name for k, name in enumerate(("war", "love", "sea")) if i % (k + 2) == 0],
        "tokens": text(i).split(),
        "tags": ["B-X" if word[0].isupper() else "O" for word in text(i).split()],
        "client": f"c{i % 4}" if i < 55 else "c9",
    }
    for i in range(60)
]
"""Four clients with 13 or 14 rows each and one with too few."""


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ROWS` as a jsonl file."""
    import json

    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


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
