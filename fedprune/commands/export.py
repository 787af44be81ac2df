"""``fedprune export``: a finished model in the form that others read, or with fewer bits."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from fedprune.commands.subject import Subject, chosen_subject
from fedprune.commands.targets import check_folder
from fedprune.export.exported_model import ExportedModel
from fedprune.export.exporting import export
from fedprune.export.offered import ROUNDING
from fedprune.export.quantise import Precision
from fedprune.methods.catalog import CALIBRATE, memories_of
from fedprune.options.refusal import ConfigError, refuse
from fedprune.protocol.models import layout_at
from fedprune.records.arms import PRUNED
from fedprune.records.checkpoint import load_state
from fedprune.records.folder import checkpoint_path
from fedprune.redundancy.calibration import LayerSums, columns_left, layer_sums
from fedprune.report.reading import size
from fedprune.runtime.sums import summary_in


def run(arguments: Namespace) -> int:
    """Export and say what was checked."""
    precision = _precision(arguments)
    looked = chosen_subject(arguments)
    folder = _folder(looked, arguments)
    check_folder("out", str(folder))
    command = "" if looked.run is None else str(summary_in(looked.run).get("command", ""))
    given = (looked.model, looked.config, looked.edits, looked.masks, precision, command)
    sums = _sums(looked, arguments.quantise_by)
    exported = ExportedModel(*given, arguments.type, sums)
    checked = export(exported, arguments.to, folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        print(f"{path}  {size(path.stat().st_size)}")
    print(checked)
    return 0


def _precision(arguments: Namespace) -> Precision | None:
    kind, group, by = arguments.quantise, arguments.group, arguments.quantise_by
    given = {"group": group is not None, "asymmetric": arguments.asymmetric}
    given["quantise-by"] = by != ROUNDING
    option = next((name for name, there in given.items() if there), None)
    if kind not in ("int8", "int4") and option:
        raise ConfigError(f"{option}: only of --quantise int8 or int4, quantise={kind!r}")
    if kind is None:
        return None
    return Precision(kind, 64 if group is None else group, not arguments.asymmetric, by)


def _sums(looked: Subject, by: str) -> dict[str, LayerSums]:
    """What the run's clients have summed to quantise by."""
    if by == ROUNDING:
        return {}
    path = None if looked.run is None else checkpoint_path(looked.run, PRUNED)
    there = looked.config.quantise_by == by and path is not None and path.is_file()
    state = load_state(path, memories_of(looked.config.plugin)) if there and path else None
    memory: Any = None if state is None else state.memories.get(CALIBRATE)
    if state is None or memory is None or not memory.sums:
        allowed = f"{ROUNDING}, or a run that was made with --quantise-by {by}"
        refuse("quantise-by", by, f"{looked.name} has no sums for it", f"{allowed}")
    before, now = (layout_at(looked.config, edits) for edits in (state.edits, looked.edits))
    return layer_sums(memory.sums, columns_left(before, now))


def _folder(looked: Subject, arguments: Namespace) -> Path:
    if arguments.out is not None:
        return Path(arguments.out)
    if looked.run is None:
        raise ConfigError(f"out: has no default for {looked.name}; allowed: --out DIR")
    by = "" if arguments.quantise_by == ROUNDING else arguments.quantise_by
    return (
        looked.run
        / "export"
        / "-".join(filter(None, (arguments.to, arguments.quantise, by, arguments.type)))
    )
