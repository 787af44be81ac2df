"""A study's file -> its cells: ``[base]`` for all, ``[grid]`` of values, ``[study]`` of words."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedprune.config.schema import flat
from fedprune.options.refusal import ConfigError
from fedprune.options.values import as_text
from fedprune.study.cells import GridCell, Levels, cells_of

SEED = "seed"  # The factor whose values are repetitions: means and spreads go over it

COMPARED_OVER = {"sparsity": (0.5, 0.8, 0.9), SEED: (0, 1, 2)}
"""What varies where a file says nothing of it: several amounts of pruning and three repetitions, as
Blalock et al. 2020 (arXiv 2003.03033, ShrinkBench) ask for. How many, and which, is our choice."""

_AMOUNTS = {"sparsity", "threshold", "target_bytes", "target_flops", "unit_shape", "init"}
"""Keys that say how much is pruned, or of what."""

_TABLES = ("study", "base", "grid")
_WORDS = ("title", "compare", "over")
_NAME = "name"  # The key of a table in the grid that says what the table is called


@dataclass(frozen=True)
class Factors:
    """The factors of several runs, and what they are for."""

    names: tuple[str, ...]  # in the order of the grid
    # the one whose values are compared with each other, by default the first whose values are
    # tables, else the first that is not the seed
    compared: str
    over: str  # the one on the horizontal axis; "" for none. By default sparsity, where it is one.

    @property
    def rest(self) -> tuple[str, ...]:
        """The others but the seed: for each combination of their values there is a table."""
        return tuple(n for n in self.names if n not in (self.compared, self.over, SEED))


@dataclass(frozen=True)
class Design:
    """What a study's file asks for."""

    title: str  # of the page
    factors: Factors  # of the grid
    cells: tuple[GridCell, ...]  # the runs
    usual: tuple[str, ...] = ()  # factors of which the file said nothing


def read_design(path: Path) -> Design:
    """The cells of a study's file, all of which have a valid configuration.

    What is compared there is compared over the sparsities and seeds of `COMPARED_OVER`, unless the
    file says of either what it is.

    Raises:
        ConfigError: the file, a key or a value of it is wrong, or a combination of values; it is
            named.
    """
    document = _document(path)
    usual = _usual(document)
    if usual:
        document = document | {"grid": document["grid"] | usual}
    return replace(design_of(document, path.stem), usual=tuple(usual))


def _usual(document: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Factors that a file which compares something says nothing of."""
    base, grid = (_table(document, key) for key in ("base", "grid"))
    tables = [v for vs in grid.values() if isinstance(vs, list) for v in vs if isinstance(v, dict)]
    said = {key for table in (base, grid, *tables) for key in flat(table)}
    if not grid.keys() - {SEED}:
        return {}
    known = {"sparsity": _AMOUNTS, SEED: {SEED}}
    return {name: list(values) for name, values in COMPARED_OVER.items() if not known[name] & said}


def design_of(document: Mapping[str, Any], title: str) -> Design:
    """As `read_design`, of what is in the file.

    `title`: where the document gives none.
    """
    for key in document.keys() - set(_TABLES):
        raise ConfigError(f"{key}: no table of a study; allowed: {', '.join(_TABLES)}")
    study, base, grid = (_table(document, key) for key in _TABLES)
    for key in study.keys() - set(_WORDS):
        raise ConfigError(f"study.{key}: no such key; allowed: {', '.join(_WORDS)}")
    levels = {str(key): _levels(str(key), values, base) for key, values in grid.items()}
    if not levels:
        raise ConfigError("grid: nothing varies; allowed: key = [value, ...] for any keys")
    if list(levels) == [SEED]:
        levels = {"configuration": {"as given": {}}, **levels}
    _check_said_once(levels)
    factors = factors_of({name: tuple(its) for name, its in levels.items()}, study, grid)
    return Design(str(study.get("title", title)), factors, tuple(cells_of(base, levels)))


def factors_of(
    levels: Mapping[str, Sequence[str]],
    said: Mapping[str, Any],
    grid: Mapping[str, Any] | None = None,
) -> Factors:
    """The factors, and which of them is compared over which.

    `said`: ``compare`` and ``over``, where they are given. `grid`: the values, of which tables are
    methods to be compared.
    """
    names = tuple(levels)
    for key in ("compare", "over"):
        if said.get(key, names[0]) not in (*names, *([""] if key == "over" else [])):
            raise ConfigError(f"{key}={said[key]!r}: not varied; allowed: {', '.join(names)}")
    tables = [n for n in names if any(isinstance(v, dict) for v in (grid or {}).get(n, ()))]
    usual = [*tables, *(n for n in names if n not in (SEED, "sparsity")), *names]
    compared = str(said.get("compare", usual[0]))
    over = str(said.get("over", "sparsity" if "sparsity" in names else ""))
    return Factors(names, compared, "" if over == compared else over)


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"study={str(path)!r}: {error.strerror}; allowed: a TOML file of [base] and [grid]"
        ) from None
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        raise ConfigError(
            f"study={str(path)!r}: not TOML: {error}; allowed: tables [base] and [grid]"
        ) from None


def _table(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{key}={found!r}: not a table; allowed: [{key}] with keys below it")
    return found


def _levels(factor: str, values: Any, base: Mapping[str, Any]) -> Levels:
    """The levels of a factor: of plain values, or of tables of keys that go together."""
    if not isinstance(values, list) or not values:
        raise ConfigError(f"grid.{factor}={values!r}: allowed: a list of values, or of tables")
    out: Levels = {}
    for value in values:
        keys = dict(value) if isinstance(value, dict) else {factor: value}
        called = keys.pop(_NAME, None) if isinstance(value, dict) else None
        label = _label(keys) if called is None else str(called)
        if label in out:
            raise ConfigError(f"grid.{factor}: {label!r} is there twice; allowed: each value once")
        for key in flat(keys).keys() & flat(base).keys():
            raise ConfigError(f"{key}: in [base] and in grid.{factor}; allowed: in one of them")
        out[label] = keys
    return out


def _label(keys: Mapping[str, Any]) -> str:
    if len(keys) == 1:
        return label_text(*keys.values())
    return ", ".join(f"{key}={label_text(value)}" for key, value in keys.items())


def label_text(value: Any) -> str:
    """What a value is called: as on the command line."""
    return str(as_text(tuple(value) if isinstance(value, list) else value))


def _check_said_once(levels: Mapping[str, Levels]) -> None:
    """Refuse a key that two factors set: the later would win without a word."""
    said: dict[str, str] = {}
    for factor, its in levels.items():
        for key in {key for keys in its.values() for key in flat(keys)}:
            if said.setdefault(key, factor) != factor:
                raise ConfigError(f"{key}: in grid.{said[key]} and in grid.{factor}; allowed: one")
