"""What each way of making a model smaller costs and brings, from one dense run a seed.

    python benchmarks/compression.py [--task shakespeare|r8] [--seeds 0 1 2] [--jobs 2] [--out DIR]
    python benchmarks/compression.py --table [--out DIR]    # print what is there already

Every line of the table is a run of ``simulations/run.py`` that begins with the weights of the same
dense run (``--init``), prunes or replaces in its first round and tunes for the rounds that are
left; `nothing removed` only tunes. So lines differ in one thing. Quality is on the
test split; bytes are all that was sent to score and tune in those rounds; FLOPs and parameters are
those of the model as it is saved; the forward pass is timed beside the dense model's by
``fedprune measure`` (in turns, one thread). Each folder has its ``commands``.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from at_start import parser_of

RUN = "simulations/run.py --engine inline"
UNITS = "--unit head-neuron --score taylor --schedule one-shot --shrink every"
HALF = f"{UNITS} --sparsity 0.5"


@dataclass(frozen=True)
class Setting:
    """A task: its dense run, how long lines tune, what is said about quality."""

    dense: str
    rounds: str
    metric: str


SETTINGS = {
    "shakespeare": Setting("--rounds 16", "--rounds 6 --warmup 0", "perplexity"),
    "r8": Setting("--task r8 --rounds 8", "--rounds 3 --warmup 0", "accuracy"),
}

LINES = {
    "nothing removed": "",
    "single weights, 50 %": "--score taylor --schedule one-shot --sparsity 0.5",
    "structured, 25 %": f"{UNITS} --sparsity 0.25",
    "structured, 50 %": HALF,
    "structured, 50 %, random": HALF.replace("taylor", "random"),
    "structured, 75 %": f"{UNITS} --sparsity 0.75",
    "structured, 50 %, distilled": f"{HALF} --distil 0.5",
    "structured, 50 %, reconstructed": f"{HALF} --reconstruct outputs",
    "structured, 50 %, blended": f"{HALF} --blend global",
    "structured, 50 %, averaged over rounds": f"{HALF} --moving swa",
    "structured, adaptive": f"{UNITS.replace('one-shot', 'adaptive')} --sparsity 0.75 "
    "--tolerance 0.05",
    "low rank, energy 0.9": "--reduce low-rank --reduce-round 1 --rank-energy 0.9",
    "structured, 50 %, int8": HALF,
}
QUANTISED = {"structured, 50 %, int8": "int8"}


def run_line(task: str, seed: int, name: str, out: Path) -> None:
    """Run one line, unless it was; measure its model."""
    setting = SETTINGS[task]
    dense = out / f"dense-{seed}"
    folder = dense if name == "start" else out / f"{name.replace(' ', '-')}-{seed}"
    if (folder / "measured.json").exists():
        return
    given = f"{setting.dense} --sparsity 0" if name == "start" else f"--init {dense}"
    more = "" if name == "start" else f"{setting.rounds} {LINES[name]}"
    called(folder, f"{RUN} {given} {more} --seed {seed} --out {folder}")
    model = folder
    if name in QUANTISED:
        model = folder / "quantised"
        called(folder, f"-m fedprune export {folder} --quantise {QUANTISED[name]} --out {model}")
    said = called(folder, f"-m fedprune measure {model} --baseline {dense} --repeats 30 --json")
    (folder / "measured.json").write_text(said)
    print(f"{task} seed {seed}: {name}", flush=True)


def called(folder: Path, command: str) -> str:
    done = subprocess.run([sys.executable, *shlex.split(command)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stderr[-2000:]}")
    with (folder / "commands").open("a") as file:
        file.write(f"python {command}\n")
    return done.stdout


def read(folder: Path, metric: str) -> dict[str, float]:
    """One run's numbers."""
    summary = json.loads((folder / "summary.json").read_text())
    models: Mapping[str, Any] = json.loads((folder / "measured.json").read_text())["models"]
    made, dense = models.values()
    return {
        metric: made["quality"][metric],
        "parameters": made["parameters"] / dense["parameters"],
        "bytes": made["bytes_held"] / dense["bytes_held"],
        "FLOPs": made["flops"] / dense["flops"],
        "times as fast": made["speedup"][0],
        "sent": (summary["bytes_up"] + summary["bytes_down"]) / summary["bytes_dense"],
    }


def table(out: Path, task: str, seeds: Sequence[int]) -> str:
    """Markdown: lines down; means over seeds, with the standard deviation of quality."""
    metric = SETTINGS[task].metric
    heads = [task, f"test {metric}", "parameters", "memory", "FLOPs", "times as fast", "sent"]
    rows = [heads, ["---", *["---:"] * 6]]
    for name in LINES:
        folders = [out / f"{name.replace(' ', '-')}-{seed}" for seed in seeds]
        found = [read(f, metric) for f in folders if (f / "measured.json").exists()]
        if found:
            values = {key: [f[key] for f in found] for key in found[0]}
            quality = values.pop(metric)
            spread = f" ({stdev(quality):.2g})" if len(quality) > 1 else ""
            digits = 2 if metric == "perplexity" else 3
            rows.append([name, f"{mean(quality):.{digits}f}{spread}"])
            rows[-1] += [f"{mean(v):.2f}" for v in values.values()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--task", choices=sorted(SETTINGS), default="shakespeare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    parser.add_argument("--only", nargs="+", choices=sorted(LINES), default=list(LINES))
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    out = args.out / args.task
    if not args.table:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda s: run_line(args.task, s, "start", out), args.seeds))
            work = [(seed, name) for seed in args.seeds for name in args.only]
            list(pool.map(lambda w: run_line(args.task, *w, out), work))
    print(table(out, args.task, args.seeds))


if __name__ == "__main__":
    main()
