"""``fedprune compare``: the page of a study, of runs that are there."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprune.commands.study import check_out
from fedprune.config.toml_text import all_keys, from_toml
from fedprune.options.refusal import ConfigError
from fedprune.records.bound import RESUMABLE
from fedprune.records.folder import CONFIG_NAME
from fedprune.study.design import SEED, factors_of, label_text
from fedprune.study.outcomes import RESULTS_NAME, StudyOutcome, outcome_in
from fedprune.study.page import write_study
from fedprune.study.pictures import Collected

_ALL = "configuration"  # The factor of all keys in which runs differ, but the seed and the sparsity


def run(arguments: Namespace) -> int:
    """Write the page of the runs in some folders, and say where it is."""
    folders, out = [Path(name) for name in arguments.runs], Path(arguments.out)
    outcomes = [outcome_in(folder, {}) for folder in folders]
    labels = compared_labels([_keys(folder) for folder in folders], arguments.by)
    _check_once(folders, labels)
    named = [
        StudyOutcome(str(o.folder), its, o.folder, o.run, o.reason)
        for o, its in zip(outcomes, labels, strict=True)
    ]
    levels = {name: tuple(dict.fromkeys(its[name] for its in labels)) for name in labels[0]}
    said = {"compare": arguments.by or (_ALL if _ALL in levels else next(iter(levels)))}
    check_out(out)
    by = ["--by", arguments.by] if arguments.by else []
    command = shlex.join(["fedprune", "compare", *arguments.runs, *by, "--out", arguments.out])
    collected = Collected("Runs compared", factors_of(levels, said), named, command)
    page = write_study(out, collected)
    print(f"results   {out / RESULTS_NAME}\ntables    {out / 'tables'}\npage      {page}")
    return 0


def _keys(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What a run was given, and all that it ran with, keys as on the command line."""
    text = (folder / CONFIG_NAME).read_text("utf-8")
    given, whole = from_toml(text), all_keys(text)
    return given, {key.replace("_", "-"): value for key, value in whole.items()}


def compared_labels(
    keys: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], by: str = ""
) -> list[dict[str, str]]:
    """What each run is called, by factor: the keys that were given to some and differ.

    `by`: the key to compare; then every other one is a factor of its own. "": those but the seed
    and the sparsity are one factor together.

    Raises:
        ConfigError: the runs do not differ, or not in `by`.
    """
    free = {key.replace("_", "-") for key in RESUMABLE} | {"out"}
    names = dict.fromkeys(key for given, _ in keys for key in given if key not in free)
    values = {n: [_text(whole.get(n)) for _, whole in keys] for n in names}
    varied = {n: its for n, its in values.items() if len(set(its)) > 1}
    if not varied:
        raise ConfigError(
            "runs: they differ in nothing that was given; allowed: two or more that do"
        )
    if by and by not in varied:
        raise ConfigError(f"by={by!r}: the runs do not differ in it; allowed: {', '.join(varied)}")
    apart = [n for n in varied if by or n in (SEED, "sparsity")]
    together = [n for n in varied if n not in apart]
    out = [{n: varied[n][i] for n in apart} for i in range(len(keys))]
    if together:
        for i, its in enumerate(out):
            its[_ALL] = ", ".join(f"{n}={varied[n][i]}" for n in together)
    return out


def _text(value: Any) -> str:
    return "none" if value is None else label_text(value)


def _check_once(folders: Sequence[Path], labels: Sequence[Mapping[str, str]]) -> None:
    """Refuse runs of the same configuration: as repetitions they would count twice."""
    seen: dict[tuple[str, ...], Path] = {}
    for folder, its in zip(folders, labels, strict=True):
        other = seen.setdefault(tuple(its.values()), folder)
        if other is not folder:
            raise ConfigError(
                f"{str(folder)!r}: differs from {str(other)!r} in nothing that was given; "
                "allowed: each run once"
            )
