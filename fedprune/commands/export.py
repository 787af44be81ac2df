"""``fedprune export``: a finished model in the form that others read, or with fewer bits."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fedprune.commands.subject import Subject, chosen_subject
from fedprune.commands.targets import check_folder
from fedprune.export.cargo import Cargo
from fedprune.export.exporting import export
from fedprune.export.quantise import Precision
from fedprune.options.refusal import ConfigError
from fedprune.report.reading import size
from fedprune.runtime.sums import summary_in


def run(arguments: Namespace) -> int:
    """Export and say what was checked."""
    precision = _precision(arguments)
    looked = chosen_subject(arguments)
    folder = _folder(looked, arguments)
    check_folder("out", str(folder))
    command = _command(looked)
    given = (looked.model, looked.config, looked.edits, looked.masks, precision, command)
    cargo = Cargo(*given, arguments.type)
    checked = export(cargo, arguments.to, folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        print(f"{path}  {size(path.stat().st_size)}")
    print(checked)
    return 0


def _command(looked: Subject) -> str:
    """What has the run again, as its summary says."""
    return "" if looked.run is None else str(summary_in(looked.run).get("command", ""))


def _precision(arguments: Namespace) -> Precision | None:
    kind, group = arguments.quantise, arguments.group
    if kind not in ("int8", "int4") and (group is not None or arguments.asymmetric):
        option = "group" if group is not None else "asymmetric"
        raise ConfigError(f"{option}: only of --quantise int8 or int4, quantise={kind!r}")
    if kind is None:
        return None
    return Precision(kind, 64 if group is None else group, not arguments.asymmetric)


def _folder(looked: Subject, arguments: Namespace) -> Path:
    if arguments.out is not None:
        return Path(arguments.out)
    if looked.run is None:
        raise ConfigError(f"out: has no default for {looked.name}; allowed: --out DIR")
    return (
        looked.run
        / "export"
        / "-".join(filter(None, (arguments.to, arguments.quantise, arguments.type)))
    )
