"""The command line, made from the one schema in `fedprune.config`."""

from __future__ import annotations

import argparse
import sys
import types
import typing
from pathlib import Path
from typing import Any, NoReturn

from fedprune.compression.wire import SCORE_TYPES, UPLINK_TYPES, VALUE_TYPES
from fedprune.config import BY_TASK, ConfigError, RunConfig, configure, from_toml
from fedprune.learning.averaging import AVERAGES, MASKS
from fedprune.learning.blending import BLENDS
from fedprune.learning.moving import MOVING
from fedprune.learning.reconstruction import RECONSTRUCTIONS
from fedprune.learning.training import OPTIMIZERS
from fedprune.plugins import scores_of, tasks_of
from fedprune.privacy.matrix import matrix
from fedprune.pruning.adaptive import ADAPTIVE
from fedprune.pruning.channels import STRUCTURES
from fedprune.pruning.combining import COMBINES, NORMALISE_SUMMARIES
from fedprune.pruning.pools import POOLS
from fedprune.pruning.schedules import SCHEDULES
from fedprune.pruning.selection import SCOPES
from fedprune.pruning.units import UNITS
from fedprune.redundancy.misfits import RANK_BY, REDUCTIONS
from fedprune.report.folder import CONFIG_NAME
from fedprune.rules import BASELINES
from fedprune.tasks.splits import SPLITS

RESUMABLE = {"engine", "workers", "gpus", "ray_address", "timeout", "verbose"}
"""Keys that may change on --resume: no bit of a result depends on them."""

EXAMPLES = """\
examples:
  python simulations/run.py --clients 20
  python simulations/run.py --task digits --score magnitude --sparsity 0.9 --baselines dense,random
  python simulations/run.py --config runs/one/config.toml --seed 1 --out runs/two
  python simulations/run.py --resume runs/one
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (all options are in --help)")


def parser() -> argparse.ArgumentParser:
    """Options in the groups of the schema; only those given are in the result."""
    out = _Parser(
        prog="run.py",
        description="Federated pruning of a model on clients simulated by Flower and Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    out.add_argument("--config", metavar="FILE", help="TOML file of options; the command line wins")
    out.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    out.add_argument("--list", action="store_true", help="print every task, score, split and more")
    groups: dict[str, Any] = {}
    for key, field in RunConfig.model_fields.items():
        extra = typing.cast(dict[str, Any], field.json_schema_extra)
        name = str(extra["group"])
        group = (
            groups.setdefault(name, out.add_argument_group(name))
            if name not in groups
            else groups[name]
        )
        option = f"--{key.replace('_', '-')}"
        group.add_argument(option, help=_help(field), **_kind(field.annotation, key))
    return out


def _help(field: Any) -> str:
    text = str(field.description).replace("%", "%%")
    told = "(default" in text
    if told or field.default in ("", None, (), {}) or isinstance(field.default, bool):
        return text
    default = BY_TASK if field.default == BY_TASK else field.default
    return f"{text} (default: {default})"


_TABLES = {"layers": "DENSITY", "ranges": "LARGEST"}
"""Options that are given once for each pattern over names, and what goes with a pattern."""


def _kind(annotation: Any, key: str) -> dict[str, Any]:
    """How argparse reads a value; pydantic checks it afterwards."""
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    kinds = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    if key in _TABLES:
        return {"action": "append", "nargs": 2, "metavar": ("PATTERN", _TABLES[key])}
    if key in {"unit_shape", "blend_grid"}:
        return {"type": _numbers, "metavar": "N,M" if key == "unit_shape" else "X,..."}
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return {"type": _names, "metavar": "NAME,..."}
    if int in kinds:
        return {"metavar": "N", "type": _number}
    if float in kinds:
        return {"metavar": "X", "type": _number}
    if typing.get_origin(annotation) is typing.Literal:
        return {"metavar": "|".join(typing.get_args(annotation))}
    return {"metavar": key.upper() if key in {"task", "score"} else "NAME"}


def _number(text: str) -> int | float | str:
    """A number where it is one; what is not, the schema refuses with the key's name."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _numbers(text: str) -> tuple[int | float | str, ...]:
    return tuple(_number(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def chosen(arguments: list[str]) -> tuple[RunConfig, Path | None]:
    """The configuration to run, and the folder to resume or None.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
        SystemExit: after --help and --list.
    """
    given = vars(parser().parse_args(arguments))
    if given.pop("list", False):
        print(listing(given.get("plugin", "")))
        raise SystemExit(0)
    for key in _TABLES.keys() & given.keys():
        given[key] = {pattern: _number(value) for pattern, value in given[key]}
    file, resume = given.pop("config", None), given.pop("resume", None)
    if resume is not None:
        return _resumed(Path(resume), file, given), Path(resume)
    base = _flat(_read(Path(file), "config")) if file is not None else {}
    given = {key: value for key, value in given.items() if base.get(key) != value}
    if given:
        base = _without_rivals(_chosen_by_hand(base), given)
    return configure(base | given), None


def _chosen_by_hand(base: dict[str, Any]) -> dict[str, Any]:
    """The file's keys, less those that would fill themselves in with the same value.

    A resolved file holds all of them; beside another number of clients or another score what
    followed from the old one must not stand in the way.
    """
    first = {key: base[key] for key in _FIRST if key in base}
    deciding = {key: base[key] for key in _DECIDING if key in base}
    by_score = {key: base[key] for key in (*_FIRST, "score", "unit", "unit_shape") if key in base}
    try:
        plain, scored, filled = (dict(configure(k)) for k in (first, by_score, deciding))
    except ConfigError:
        return base
    reference = {
        **filled,
        **{key: plain[key] for key in _DECIDING},
        **{key: scored[key] for key in _BY_SCORE},
    }

    def same(key: str, value: Any) -> bool:
        held = reference.get(key)
        return held == (tuple(value) if isinstance(value, list) else value)

    return {k: v for k, v in base.items() if k in _FIRST or not same(k, v)}


_FIRST = ("task", "plugin")

_BY_SCORE = ("warmup", "schedule", "scope", "sparsity", "score_during", "probes")
"""Keys that a score, or the pattern n:m, fills in."""

_DECIDING = (
    *_FIRST,
    *("clients", "rounds", "split", "client_column", "optimizer", "score", "schedule", "unit"),
    *("unit_shape", "combine", "masks", "warmup", "sparsity", "threshold", "target_bytes"),
    *("target_flops", "layers", "scope", "adaptive", "blend", "moving"),
)
"""Keys that others follow from."""


def _without_rivals(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The file's keys, less those that nothing reads any more beside what the command line says.

    A resolved file holds all of them, and an option cannot be unset on the command line.
    """
    given = {key: value for key, value in given.items() if base.get(key) != value}
    gone = {name for key in given for name in _BELONGING.get(key, ())}
    if given.get("local_epochs"):
        gone |= {"local_steps"}
    if given.get("local_steps"):
        gone |= {"local_epochs"}
    if given.keys() & _AMOUNTS:
        gone |= _AMOUNTS
    # A threshold prunes once: what the file says of the way to a sparsity is of no use to it.
    if "threshold" in given or ("threshold" in base and given.keys() & _AMOUNTS):
        gone |= {"schedule", "end"}
    if "one-shot" in (base.get("schedule"), given.get("schedule")) and "schedule" in given:
        gone |= {"end"}
    # A pattern says by itself how much goes.
    if "n:m" in (base.get("unit"), given.get("unit")) and given.keys() & {"unit", "unit_shape"}:
        gone |= {"sparsity"}
    return {key: value for key, value in base.items() if key not in gone}


_AMOUNTS = {"sparsity", "threshold", "target_bytes", "target_flops"}

_RANKS = ("rank_energy", "rank_budget", "rank_tolerance")

_BELONGING: dict[str, tuple[str, ...]] = {
    "task": (
        *(
            "model",
            "depth",
            "width",
            "length",
            "data",
            "encoding",
            "text_column",
            "label_column",
            "target_column",
        ),
        *("client_column", "split", "alpha"),
    ),
    "split": ("alpha",),
    "optimizer": ("momentum",),
    "schedule": ("regrow", "tolerance", "candidates", "adaptive"),
    "blend": ("blend_grid",),
    "moving": ("moving_decay",),
    "unit": ("unit_shape", "pool", "structure"),
    "scope": ("layers",),
    "score": ("probes",),
    "combine": ("trim", "vote_scope"),
    "masks": ("average",),
    "l1": ("shrinkage",),
    "distil": ("temperature",),
    "group_lasso": ("shrinkage",),
    "reduce": ("reduce_round", "reduce_within", "rank_by", *_RANKS),
    **dict.fromkeys(_RANKS, _RANKS),
}
"""Keys that only mean something beside one value of another."""


def _resumed(folder: Path, file: str | None, given: dict[str, Any]) -> RunConfig:
    fixed = sorted(given.keys() - RESUMABLE)
    if file is not None or fixed:
        key = "config" if file is not None else fixed[0].replace("_", "-")
        allowed = ", ".join(sorted(k.replace("_", "-") for k in RESUMABLE))
        raise ConfigError(f"{key}: cannot change on --resume; allowed: {allowed}")
    return configure(_flat(_read(folder / CONFIG_NAME, "resume")) | given)


def _read(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{key}={str(path)!r}: no such file; allowed: a TOML file of options")
    try:
        return from_toml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}={str(path)!r}: {error}; allowed: UTF-8") from None


def _flat(given: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in given.items()}


def listing(plugin: str) -> str:
    """Every name that an option takes, with a line about each, from the tables themselves."""
    tables: dict[str, dict[str, str]] = {
        "task": {name: task.summary for name, task in tasks_of(plugin).items()},
        "model": _models(plugin),
        "split": SPLITS,
        "score": {n: f"{s.summary} [{s.source}]" for n, s in scores_of(plugin).items()},
        "combine": {n: f"{c.summary} [{c.source}]" for n, c in COMBINES.items()},
        "normalise": NORMALISE_SUMMARIES,
        "masks": {n: f"{m.summary} [{m.source}]" for n, m in MASKS.items()},
        "average": {n: f"{a.summary} [{a.source}]" for n, a in AVERAGES.items()},
        "scope": {name: scope.summary for name, scope in SCOPES.items()},
        "unit": {name: unit.summary for name, unit in UNITS.items()},
        "structure": STRUCTURES,
        "pool": {name: pool.summary for name, pool in POOLS.items()},
        "schedule": {name: schedule.summary for name, schedule in SCHEDULES.items()},
        "adaptive": ADAPTIVE,
        "blend": BLENDS,
        "moving": MOVING,
        "reconstruct": {n: f"{r.summary} [{r.source}]" for n, r in RECONSTRUCTIONS.items()},
        "optimizer": {name: f"torch.optim, {name}" for name in OPTIMIZERS},
        "wire": {name: str(dtype).removeprefix("torch.") for name, dtype in VALUE_TYPES.items()},
        "uplink": UPLINK_TYPES,
        "score-wire": SCORE_TYPES,
        "reduce": REDUCTIONS,
        "rank-by": RANK_BY,
        "baselines": BASELINES,
    }
    blocks = [
        "\n".join([f"--{option}", *(f"  {name:<24} {text}" for name, text in table.items())])
        for option, table in tables.items()
    ]
    rules = [
        "\n".join([f"beside --{name}", *(f"  {line}" for line in lines)])
        for name, lines in matrix().items()
    ]
    return "\n\n".join([*blocks, *rules])


def _models(plugin: str) -> dict[str, str]:
    """Every model that some task names, and the tasks that do."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, task in tasks_of(plugin).items():
        for model, summary in task.models.items():
            found.setdefault(model, (summary, []))[1].append(name)
    lines = {m: f"{summary} ({', '.join(names)})" for m, (summary, names) in found.items()}
    paths = ", ".join(name for name, task in tasks_of(plugin).items() if task.paths)
    return lines | {"PATH": f"a folder or hub id that transformers loads ({paths})"}


def main_error(error: Exception) -> int:
    """Print one line and give back the exit code of bad input."""
    print(f"run.py: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
