"""What the commands for models take: read before what they do is imported."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable

from fedprune.export.offered import (
    EXPORT_SUMMARIES,
    GGUF_SUMMARIES,
    PRECISIONS,
    QUANTISED_BY,
    ROUNDING,
)

MODEL_HELP = (
    "a run's folder, its model/ folder, or a folder that `fedprune export` wrote; with --task also "
    "whatever that task's --model takes: a family, a folder of transformers, a hub id"
)


def add_subject(parser: ArgumentParser) -> None:
    """Put the arguments that `chosen_subject` reads on a command's parser."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add("--task", metavar="NAME", help="task of a pretrained model")
    add("--data", metavar="PATH", help="the file or folder of a task that reads one")
    add("--encoding", metavar="NAME", help="encoding of the files in --data")
    add("--text-column", metavar="NAME", help="column of the text in --data")
    add("--label-column", metavar="NAME", help="column of the class in --data")
    add("--length", metavar="N", type=int, help="tokens of an example of text")
    text = "Python file with the model's task (a file that a run's folder names is never executed)"
    add("--plugin", metavar="FILE", help=text)


def _part(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise ArgumentTypeError(f"{text!r}: no such part; allowed: above 0, to 1")
    return found


def _count(allowed: str, fits: Callable[[int], bool]) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not fits(int(text)):
            raise ArgumentTypeError(f"{text!r}: allowed: {allowed}")
        return int(text)

    return number


_positive = _count("1, 2, 3, ...", lambda n: n >= 1)
_shadows = _count("0, 6, 8, 10, ...", lambda n: n == 0 or (n >= 6 and n % 2 == 0))
_canaries = _count("10, 11, 12, ...", lambda n: n >= 10)


def analyse_options(parser: ArgumentParser) -> None:
    """Put the arguments of ``fedprune analyse`` on its parser."""
    add = parser.add_argument
    add_subject(parser)
    add(
        "--energy",
        type=_part,
        default=0.9,
        metavar="PART",
        help="ranks are those that hold this part of a matrix's sum of squares (0.9)",
    )
    add(
        "--similar",
        type=_part,
        default=0.95,
        metavar="COSINE",
        help="smallest absolute cosine that counts as similar (0.95)",
    )
    add(
        "--inputs",
        action=BooleanOptionalAction,
        default=True,
        help="collect sums of layer inputs on every partition's training data",
    )
    add("--json", metavar="FILE", help="also write the results to FILE")


def measure_options(parser: ArgumentParser) -> None:
    """Put the arguments of ``fedprune measure`` on its parser."""
    add = parser.add_argument
    add_subject(parser)
    add(
        "--baseline",
        metavar="MODEL",
        help="model to compare with (default: the dense model of the same configuration)",
    )
    for name, default, text in (
        ("batch", 8, "examples in a timed pass"),
        ("repeats", 20, "timed passes of each model, the models in turns"),
        ("warmup", 3, "untimed passes before those"),
        ("threads", 1, "torch threads while timing"),
    ):
        add(f"--{name}", type=_positive, default=default, metavar="N", help=f"{text} ({default})")
    add("--tokens", type=_positive, metavar="N", help="length of an example (default: the task's)")
    add(
        "--memory",
        action=BooleanOptionalAction,
        default=True,
        help="measure peak memory, in a fresh process for each model",
    )
    add(
        "--quality",
        action=BooleanOptionalAction,
        default=True,
        help="measure quality on the test split where no run's summary has it",
    )
    add("--json", action="store_true", help="print one JSON object, no table")


def audit_options(parser: ArgumentParser) -> None:
    """Put the arguments of ``fedprune audit`` on its parser."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="a finished run's folder")
    add("--plugin", metavar="FILE", default="", help="Python file of the run's task")
    add(
        "--shadows",
        type=_shadows,
        default=0,
        metavar="N",
        help="also attack by LiRA with N shadow models, trained on the run's task (0)",
    )
    add(
        "--canaries",
        type=_canaries,
        default=1000,
        metavar="N",
        help="canary clients with which the run's noised sums are repeated (1000)",
    )


def export_options(parser: ArgumentParser) -> None:
    """Put the arguments of ``fedprune export`` on its parser."""
    add = parser.add_argument
    add_subject(parser)
    forms = "; ".join(f"{name}: {words}" for name, words in EXPORT_SUMMARIES.items())
    kinds = "; ".join(f"{name}: {words}" for name, words in PRECISIONS.items())
    add("--to", choices=list(EXPORT_SUMMARIES), default="safetensors", help=forms)
    add("--out", metavar="DIR", help="a new folder (default: MODEL/export/<form>[-<bits>])")
    types = "; ".join(f"{name}: {words}" for name, words in GGUF_SUMMARIES.items())
    add(
        "--type",
        choices=list(GGUF_SUMMARIES),
        type=str.lower,
        help=f"type of matrices with --to gguf (default: as the weights came). {types}",
    )
    add("--quantise", choices=list(PRECISIONS), help=kinds)
    add("--group", type=int, metavar="N", help="number of inputs that share a scale (default 64)")
    add(
        "--asymmetric",
        action="store_true",
        help="use a zero point in every group, for int8 and int4",
    )
    ways = "; ".join(f"{name}: {words}" for name, words in QUANTISED_BY.items())
    add(
        "--quantise-by",
        choices=list(QUANTISED_BY),
        default=ROUNDING,
        help=f"how the codes of int8 and int4 are chosen (default: {ROUNDING}). {ways}",
    )


def study_options(parser: ArgumentParser) -> None:
    """Put the arguments of ``fedprune study`` on its parser."""
    add = parser.add_argument
    add("file", metavar="FILE", help="TOML: [base] keys, [grid] lists of values")
    add("--out", metavar="DIR", required=True, help="folder of the study")
    add("--jobs", type=_positive, metavar="N", help="runs at once (default: one a processor)")
    add(
        "--ray-address",
        metavar="ADDRESS",
        default="",
        help="play the runs on the nodes of this Ray cluster, which must all see DIR "
        "(HOST:PORT, or auto: the cluster whose head is on this machine)",
    )
    add("--dry-run", action="store_true", help="check the file and list the runs, play none")


def compare_options(parser: ArgumentParser) -> None:
    """Put the arguments of ``fedprune compare`` on its parser."""
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="folders of finished runs")
    add("--out", metavar="DIR", required=True, help="folder of the page")
    add("--by", metavar="KEY", default="", help="option whose values are compared (default: all)")


def new_options(parser: ArgumentParser) -> None:
    """Put the arguments of ``fedprune new`` on its parser."""
    parser.add_argument("folder", metavar="DIR", help="folder of the app, which gets its name")
