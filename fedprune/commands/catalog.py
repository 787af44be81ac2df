"""The commands by name: what each does, with examples, and where it is."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

from fedprune.commands.device_options import EXAMPLES, device_options
from fedprune.commands.model_options import (
    analyse_options,
    audit_options,
    compare_options,
    export_options,
    measure_options,
    new_options,
    study_options,
)


@dataclass(frozen=True)
class Command:
    """A sub-command."""

    summary: str  # one line about it
    examples: str  # lines of a shell that show what it is for
    options: Callable[[ArgumentParser], None]  # puts its arguments on a parser
    # does it and gives back the exit code; bad input is raised as an error of one line
    run: Callable[[Namespace], int]


def _of(name: str) -> Callable[[Namespace], int]:
    """``run`` of the module of a command, which is imported when it is called."""
    return lambda given: int(importlib.import_module(f"fedprune.commands.{name}").run(given))


COMMANDS: dict[str, Command] = {
    "new": Command(
        "Writes a Flower app to edit: your model, data and training, pruned under `flwr run`.",
        """\
  fedprune new my-app && cd my-app
  python -m my_app.simulate        # in one process
  flwr run . --stream              # the same on Flower
""",
        new_options,
        _of("new"),
    ),
    "analyse": Command(
        "Redundancy of a model: spectra, duplicates, dead units, layers that could be merged.",
        """\
  fedprune analyse runs/one
  fedprune analyse runs/one --energy 0.99 --json redundancy.json
  fedprune analyse gpt2 --task shakespeare --no-inputs
""",
        analyse_options,
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
        measure_options,
        _of("measure"),
    ),
    "audit": Command(
        "What a finished run gives away: membership inference, canaries, and its ledger.",
        """\
  fedprune audit runs/one
  fedprune audit runs/one --shadows 16
""",
        audit_options,
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
        export_options,
        _of("export"),
    ),
    "devices": Command(
        "Runs Flower's commands for devices: certificates, SuperLink, SuperNodes, runs.",
        EXAMPLES,
        device_options,
        _of("devices"),
    ),
    "study": Command(
        "Plays a run for every combination of values; writes one page, tables and results.csv.",
        """\
  fedprune study simulations/studies/digits.toml --out runs/digits-study
  fedprune study my.toml --out runs/mine --dry-run
  fedprune study my.toml --out runs/mine --jobs 4     # again: what is there is not played anew
  fedprune study my.toml --out /shared/mine --ray-address HEAD:6379    # on a cluster's nodes
""",
        study_options,
        _of("study"),
    ),
    "compare": Command(
        "Compares finished runs on a page like a study's.",
        """\
  fedprune compare runs/one runs/two runs/three --out runs/compared
  fedprune compare runs/seed-* --by score --out runs/compared
""",
        compare_options,
        _of("compare"),
    ),
}
"""A new sub-command is a module in `fedprune.commands` and an entry here."""
