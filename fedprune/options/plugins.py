"""The tables of scores and tasks, with those of a user's own Python file added.

A plug-in is a file that defines ``SCORES`` or ``TASKS``, dictionaries like ours. Server and
clients both load it: on devices it is part of the app that Flower ships.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

APP = Path(__file__).resolve().parents[2]
"""Where a device, or ``flwr run``, has the files of this app; a relative path may be from there."""


def with_code_of(plugin: str, keys: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Keys that a file holds, with the plug-in that the caller gives: a file never chooses code.

    `where` is the file, for the message.

    Raises:
        ValueError: the file names a plug-in, and the caller gives none.
    """
    named = str(keys.get("plugin") or "")
    if named and not plugin:
        raise ValueError(
            f"plugin={named!r}: named by {where}, and a file does not choose what code runs; "
            f"allowed: --plugin {named} (plugin=... in Python), if you trust it"
        )
    return {**keys, "plugin": plugin} if named or plugin else dict(keys)


def check_of_this_app(plugin: str) -> None:
    """Refuse a plug-in that is no file of the app that Flower shipped: a server asks a device."""
    if plugin and not (APP / plugin).resolve().is_relative_to(APP):
        raise ValueError(f"plugin={plugin!r}: not in the app; allowed: a path within it")


def source_of(plugin: str) -> bytes:
    """The content of a plug-in's file, and of the user's files that it imports; "" if gone.

    These are in its folder or where Python looks (``PYTHONPATH``), but for what is installed; what
    they import counts too.
    """
    return b"".join(path.read_bytes() for path in files_of(plugin))


def files_of(plugin: str) -> list[Path]:
    """A plug-in's file and the user's files that it imports, as in `source_of`; none if gone."""
    path = _path_of(plugin)
    return _with_imports(path) if path.is_file() else []


def roots_of(plugin: str) -> list[Path]:
    """Where the user's files lie that a plug-in may import: its folder, and where Python looks.

    But for Python's own places, and for what is installed, or this app.
    """
    installed = [Path(sys.prefix), Path(sys.base_prefix), APP]
    places = [Path(place).resolve() for place in sys.path]
    own = [p for p in places if not any(p.is_relative_to(i) for i in installed)]
    return [_path_of(plugin).parent, *own]


def _with_imports(plugin: Path) -> list[Path]:
    found, new = [plugin], [plugin]
    roots = roots_of(str(plugin))
    while new:
        for module in sorted(_imported(new.pop().read_bytes())):
            ats = [root.joinpath(*module.split(".")) for root in roots]
            for file in (f for at in ats for f in (at.with_suffix(".py"), at / "__init__.py")):
                if file.is_file() and file not in found:
                    found.append(file)
                    new.append(file)
    return found


def _imported(source: bytes) -> set[str]:
    """Every module that may be meant: of ``from a.b import c`` a, a.b and a.b.c."""
    out: set[str] = set()
    try:
        tree = ast.parse(source)
    except SyntaxError:  # beside a plug-in lies what is imported nowhere
        return out
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return out | {name[:i] for name in out for i, c in enumerate(name) if c == "."}


def _path_of(plugin: str) -> Path:
    return next((p for p in (Path(plugin), APP / plugin) if p.is_file()), Path(plugin))


@functools.cache
def _loaded(plugin: str) -> ModuleType:
    path = _path_of(plugin)
    spec = importlib.util.spec_from_file_location(f"fedprune_plugin_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(
            f"plugin={plugin!r}: no such Python file; allowed: path of a .py file"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ImportError(
            f"plugin={plugin!r}: {type(error).__name__}: {error}; allowed: a file that runs"
        ) from error
    return module


def table_in(plugin: str, name: str, kind: type) -> dict[str, Any]:
    """A plug-in's table; ImportError: it is no dictionary of what belongs there."""
    table = vars(_loaded(plugin)).get(name, {}) if plugin else {}
    if not isinstance(table, dict) or not all(isinstance(v, kind) for v in table.values()):
        raise ImportError(
            f"plugin={plugin!r}: {name} is something else; "
            f"allowed: a dictionary of fedprune.{kind.__name__} by name"
        )
    return table
