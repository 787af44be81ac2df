"""What the commands for models take: read before what they do is imported."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from dataclasses import dataclass

from fedprune.commands.device_options import EXAMPLES, device_options
from fedprune.export.offered import (
    EXPORT_SUMMARIES,
    GGUF_SUMMARIES,
    PRECISIONS,
    QUANTISED_BY,
    ROUNDING,
)


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        summary: one line about it.
        examples: lines of a shell that show what it is for.
        options: puts its arguments on a parser.
        run: does it and gives back the exit code; bad input is raised as an error of one line.
    """

    summary: str
    examples: str
    options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


def _of(name: str) -> Callable[[Namespace], int]:
    """``run`` of the module of a command, which is imported when it is called."""
    return lambda given: int(importlib.import_module(f"fedprune.commands.{name}").run(given))


MODEL_HELP = (
    "a run's folder, its model/ folder, or a folder that `fedprune export` wrote; with --task also "
    "whatever that task's --model takes: a family, a folder of transformers, a hub id"
)


def add_subject(parser: ArgumentParser) -> None:
    """Put the arguments that `chosen_subject` reads on a command's parser."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--task", metavar="NAME", help="what a pretrained model is for")
    parser.add_argument(
        "--data", metavar="PATH", help="the file or folder of a task that reads one"
    )
    parser.add_argument("--encoding", metavar="NAME", help="encoding of the files in --data")
    parser.add_argument("--text-column", metavar="NAME", help="column of the text in --data")
    parser.add_argument("--label-column", metavar="NAME", help="column of the class in --data")
    parser.add_argument("--length", metavar="N", type=int, help="tokens of an example of text")
    text = "Python file with the model's task (one that a folder names is not run)"
    parser.add_argument("--plugin", metavar="FILE", help=text)


def _part(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise ArgumentTypeError(f"{text!r}: no such part; allowed: above 0, to 1")
    return found


def _analyse(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    add_subject(parser)
    parser.add_argument(
        "--energy",
        type=_part,
        default=0.9,
        metavar="PART",
        help="part of a matrix's sum of squares that ranks are given for (0.9)",
    )
    parser.add_argument(
        "--similar",
        type=_part,
        default=0.95,
        metavar="COSINE",
        help="least cosine, in size, that is called similar (0.95)",
    )
    parser.add_argument(
        "--inputs",
        action=BooleanOptionalAction,
        default=True,
        help="sum what goes into the layers over every partition's training data",
    )
    parser.add_argument("--json", metavar="FILE", help="write all of it there too")


def _measure(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    add_subject(parser)
    parser.add_argument(
        "--baseline",
        metavar="MODEL",
        help="what it is held against (default: the dense model of the same configuration)",
    )
    for name, default, text in (
        ("batch", 8, "examples in a pass that is timed"),
        ("repeats", 20, "passes of each model that are timed, in turns"),
        ("warmup", 3, "passes before them"),
        ("threads", 1, "threads of torch meanwhile"),
    ):
        parser.add_argument(
            f"--{name}", type=_positive, default=default, metavar="N", help=f"{text} ({default})"
        )
    parser.add_argument(
        "--tokens", type=_positive, metavar="N", help="length of an example (default: the task's)"
    )
    parser.add_argument(
        "--memory",
        action=BooleanOptionalAction,
        default=True,
        help="measure peak memory, in a fresh process for each model",
    )
    parser.add_argument(
        "--quality",
        action=BooleanOptionalAction,
        default=True,
        help="measure on the test split what no run's summary tells",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no count; allowed: 1, 2, 3, ...")
    return int(text)


def _audit(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("run_folder", metavar="RUN", help="a finished run's folder")
    parser.add_argument(
        "--plugin",
        metavar="FILE",
        default="",
        help="Python file of the run's task",
    )
    parser.add_argument(
        "--shadows",
        type=_shadows,
        default=0,
        metavar="N",
        help="also attack by LiRA, with N models of the run's task that are trained for it (0)",
    )
    parser.add_argument(
        "--canaries",
        type=_canaries,
        default=1000,
        metavar="N",
        help="canary clients that the run's noised sums are made with again (1000)",
    )


def _shadows(text: str) -> int:
    if not text.isdecimal() or (int(text) and (int(text) < 6 or int(text) % 2)):
        raise ArgumentTypeError(f"{text!r}: allowed: 0, 6, 8, 10, ...")
    return int(text)


def _canaries(text: str) -> int:
    if not text.isdecimal() or int(text) < 10:
        raise ArgumentTypeError(f"{text!r}: allowed: 10, 11, 12, ...")
    return int(text)


def _export(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    add_subject(parser)
    forms = "; ".join(f"{name}: {words}" for name, words in EXPORT_SUMMARIES.items())
    kinds = "; ".join(f"{name}: {words}" for name, words in PRECISIONS.items())
    parser.add_argument("--to", choices=list(EXPORT_SUMMARIES), default="safetensors", help=forms)
    parser.add_argument(
        "--out", metavar="DIR", help="a new folder (default: MODEL/export/<form>[-<bits>])"
    )
    types = "; ".join(f"{name}: {words}" for name, words in GGUF_SUMMARIES.items())
    parser.add_argument(
        "--type",
        choices=list(GGUF_SUMMARIES),
        type=str.lower,
        help=f"of the matrices under --to gguf (default: as the weights were brought). {types}",
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
    ways = "; ".join(f"{name}: {words}" for name, words in QUANTISED_BY.items())
    parser.add_argument(
        "--quantise-by",
        choices=list(QUANTISED_BY),
        default=ROUNDING,
        help=f"what the codes of int8 and int4 are chosen by (default: {ROUNDING}). {ways}",
    )


def _study(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("file", metavar="FILE", help="TOML: [base] keys, [grid] lists of values")
    parser.add_argument("--out", metavar="DIR", required=True, help="where everything goes")
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="runs at once (default: one a processor)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the file and list the runs, play none"
    )


def _compare(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of finished runs")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the page goes")
    parser.add_argument(
        "--by", metavar="KEY", default="", help="the key whose values are compared (default: all)"
    )


def _new(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="where it goes; the app has its name")


COMMANDS: dict[str, Command] = {
    "new": Command(
        "Writes a Flower app to edit: your model, data and training, pruned under `flwr run`.",
        """\
  fedprune new my-app && cd my-app
  python -m my_app.simulate        # in one process
  flwr run . --stream              # the same on Flower
""",
        _new,
        _of("new"),
    ),
    "analyse": Command(
        "Redundancy of a model: spectra, duplicates, dead units, and paths that could be one.",
        """\
  fedprune analyse runs/one
  fedprune analyse runs/one --energy 0.99 --json redundancy.json
  fedprune analyse gpt2 --task shakespeare --no-inputs
""",
        _analyse,
        _of("analyse"),
    ),
    "measure": Command(
        "Parameters, bytes, FLOPs, latency, memory and quality of a model, beside the dense one.",
        """\
  fedprune measure runs/one
  fedprune measure runs/one --batch 1 --tokens 256 --threads 2
  fedprune measure exports/int8 --baseline runs/one
  fedprune measure gpt2 --task shakespeare --no-quality --json
""",
        _measure,
        _of("measure"),
    ),
    "audit": Command(
        "What a finished run gives away: membership inference, canaries, and its ledger.",
        """\
  fedprune audit runs/one
  fedprune audit runs/one --shadows 16
""",
        _audit,
        _of("audit"),
    ),
    "export": Command(
        "Writes a model for transformers, llama.cpp, vLLM, onnxruntime, or as fewer bytes.",
        """\
  fedprune export runs/one --to hf --out my-model
  fedprune export runs/one --to safetensors
  fedprune export runs/one --quantise int4 --group 32
  fedprune export runs/one --quantise int4 --quantise-by gptq
  fedprune export runs/one --to gguf --type q8_0
  fedprune export runs/one --to onnx --out graph
""",
        _export,
        _of("export"),
    ),
    "devices": Command(
        "Certificates, SuperLink, SuperNodes and runs of Flower on devices, by its own commands.",
        EXAMPLES,
        device_options,
        _of("devices"),
    ),
    "study": Command(
        "Runs for every combination of values, and one page, tables and results.csv of them.",
        """\
  fedprune study simulations/studies/digits.toml --out runs/digits-study
  fedprune study my.toml --out runs/mine --dry-run
  fedprune study my.toml --out runs/mine --jobs 4     # again: what is there is not played anew
""",
        _study,
        _of("study"),
    ),
    "compare": Command(
        "The page of a study, of runs that are there.",
        """\
  fedprune compare runs/one runs/two runs/three --out runs/compared
  fedprune compare runs/seed-* --by score --out runs/compared
""",
        _compare,
        _of("compare"),
    ),
}
"""A new sub-command is a module in `fedprune.commands` and an entry here."""
