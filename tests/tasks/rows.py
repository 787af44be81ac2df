"""Rows as a user would have them, with a column for every task."""

import json
from pathlib import Path
from typing import Any

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


def write_rows(path: Path) -> Path:
    """`ROWS` as a jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path
