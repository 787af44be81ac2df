"""``fedprune export``: a finished model in the form that others read, or with fewer bits."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from fedprune.commands.subject import Subject, add_subject, chosen_subject
from fedprune.commands.targets import check_folder
from fedprune.export.exporting import EXPORT_FORMATS, Cargo, export
from fedprune.export.quantise import PRECISIONS, Precision
from fedprune.options.refusal import ConfigError
from fedprune.report.reading import size
from fedprune.runtime.sums import summary_in

SUMMARY = "Writes a model for transformers, safetensors, onnxruntime or as one sparse file."

EXAMPLES = """\
  fedprune export runs/one --to hf --out my-model
  fedprune export runs/one --to safetensors
  fedprune export runs/one --quantise int4 --group 32
  fedprune export runs/one --to onnx --out graph
"""


def options(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    add_subject(parser)
    forms = "; ".join(f"{name}: {form.summary}" for name, form in EXPORT_FORMATS.items())
    kinds = "; ".join(f"{name}: {words}" for name, words in PRECISIONS.items())
    parser.add_argument("--to", choices=list(EXPORT_FORMATS), default="safetensors", help=forms)
    parser.add_argument(
        "--out", metavar="DIR", help="a new folder (default: MODEL/export/<form>[-<bits>])"
    )
    parser.add_argument("--quantise", choices=list(PRECISIONS), help=kinds)
    parser.add_argument(
        "--group", type=int, metavar="N", help="inputs that share a scale (default 64)"
    )
    parser.add_argument(
        "--asymmetric",
        action="store_true",
        help="a zero point for every group, for int8 and int4",
    )


def run(arguments: Namespace) -> int:
    """Export and say what was checked."""
    precision = _precision(arguments)
    looked = chosen_subject(arguments)
    folder = _folder(looked, arguments)
    check_folder("out", str(folder))
    command = _command(looked)
    cargo = Cargo(looked.model, looked.config, looked.edits, looked.masks, precision, command)
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
    return looked.run / "export" / "-".join(filter(None, (arguments.to, arguments.quantise)))
