"""Writes what follows from the options' declarations: ``python docs/options.py``.

That is docs/options.md and the keys of ``[tool.flwr.app.config]`` in pyproject.toml; `--help` and
`--list` are made from the same declarations when they are asked for. A test holds the files to it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedprune.config import BY_TASK, RunConfig
from fedprune.config.allowed import allowed
from fedprune.config.toml_text import FLOWERS_OWN
from fedprune.options.conditions import in_words
from fedprune.options.option import declared
from fedprune.options.values import as_text

ROOT = Path(__file__).resolve().parents[1]

HEAD = """\
# Options

Made from the options' declarations by `python docs/options.py`; do not edit.

Each is a flag of the command line (`--local-steps 4`), a key of a TOML file (`local-steps = 4`), \
a key of Flower's run config (`flwr run . --run-config 'local-steps=4'`) and an argument of \
`RunConfig(local_steps=4)`; all four read a value alike. *Beside*: what has to be given for the \
option to be read; beside anything else a value for it is refused, and `--config FILE` leaves it \
out of a file whose other values no longer read it. `python simulations/run.py --list` says what \
each name is.
"""


def page() -> str:
    """The tables of all options, by group."""
    groups: dict[str, list[str]] = {}
    for key, field in RunConfig.model_fields.items():
        says = declared(field)
        cells = [
            f"`--{key.replace('_', '-')}`",
            str(field.description),
            "a name" if says.names is not None else allowed(field).partition(", see --help")[0],
            _default(field),
            f"`{in_words(says.when)}`" if in_words(says.when) else "",
        ]
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        groups.setdefault(says.group, []).append(f"| {row} |")
    head = "| option | what it is | takes | default | beside |\n| --- | --- | --- | --- | --- |"
    parts = [
        f"## {group.capitalize()}\n\n{head}\n" + "\n".join(rows) for group, rows in groups.items()
    ]
    return "\n\n".join([HEAD.rstrip(), *parts]) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default == BY_TASK:
        return BY_TASK
    if declared(field).derived or field.default in (None, "", (), {}):
        return ""
    return f"`{str(as_text(field.default)).lower()}`"


def with_flower_keys(text: str) -> str:
    """The text of pyproject.toml with every option, and no other, as a key of Flower's."""
    keys = [*FLOWERS_OWN, *(key.replace("_", "-") for key in RunConfig.model_fields)]
    table = "".join(f'{key} = ""\n' for key in keys)
    return re.sub(r"(?<=\[tool\.flwr\.app\.config\]\n)(?:[a-z0-9-]+ = \"\"\n)*", table, text)


if __name__ == "__main__":
    project = ROOT / "pyproject.toml"
    project.write_text(with_flower_keys(project.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "docs" / "options.md").write_text(page(), encoding="utf-8")
