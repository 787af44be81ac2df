"""The names that an option can have: where their table is, and the table itself when needed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NameTable:
    """Where an option's names are: imported when what they stand for is needed, so for no flag.

    Attributes:
        module: that defines it.
        name: of the mapping there, whose keys are written out.
        by_plugin: the function there that adds a plug-in's names; "": none are added.
    """

    module: str
    name: str
    by_plugin: str = ""

    def __call__(self, plugin: str) -> Mapping[str, Any]:
        """The table, with what a plug-in adds."""
        module = importlib.import_module(self.module)
        if self.by_plugin:
            return typing.cast(Mapping[str, Any], getattr(module, self.by_plugin)(plugin))
        return typing.cast(Mapping[str, Any], getattr(module, self.name))

    def keys(self) -> tuple[str, ...]:
        """The names without a plug-in's, read off the module's source, which costs no import."""
        found = importlib.util.find_spec(self.module)
        assert found is not None
        assert found.origin is not None  # it is a module of ours
        for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
            targets = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            )
            if any(isinstance(t, ast.Name) and t.id == self.name for t in targets):
                keys = getattr(getattr(node, "value", None), "keys", [])
                return tuple(ast.literal_eval(key) for key in keys)
        raise LookupError(f"{self.module} has no {self.name}")
