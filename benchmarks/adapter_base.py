"""Peak memory of training adapters over a frozen base in float32, int8 and int4.

    python benchmarks/adapter_base.py [--size 60m] [--folder FOLDER]

A LLaMA of the shape with random bf16 weights (`benchmarks/stream.py`), Wanda at 50 %, then rank-8
factors are trained by two clients, two steps of two rows of 32 tokens each. Every row is a whole
run in a fresh process. Memory is how far the peak of what is resident lies above what is resident
once the imports are done and a run of a tiny model is over.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from memory import resident
from stream import INDEX, SHAPES, written

from fedprune import federate
from fedprune.config import configure

BASES = ("float32", "int8", "int4")


def run(folder: Path, base: str, length: int) -> None:
    """Prune the model, and train adapters over the base."""
    texts = folder / "texts.txt"
    lines = (f"Line {i} says {i * i} and so on, to number {7 * i}.\n" for i in range(60))
    texts.write_text("".join(lines))
    given = {"task": "language-modelling", "model": str(folder), "data": str(texts)}
    given |= {"clients": 2, "hosts": 1, "length": length, "score_batch": 1, "batch_size": 2}
    given |= {"rounds": 1, "warmup": 0, "schedule": "one-shot", "local_steps": 2}
    given |= {"score": "wanda", "scope": "row", "sparsity": 0.5, "agreement": False}
    given |= {"adapters": "lora", "adapter_base": base, "engine": "inline"}
    federate(configure(given))


def one(folder: Path, base: str) -> None:
    """The run of a fresh process, after one of a tiny model."""
    with tempfile.TemporaryDirectory() as tiny:
        written(Path(tiny), "tiny")
        run(Path(tiny), base, 8)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run(folder, base, 32)
    print(resident("VmHWM") - before, round(sum(os.times()[:2])))


def main() -> None:
    """Print a row for every base."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=SHAPES, default="60m")
    parser.add_argument("--folder", default="", help="where models are kept (default: nowhere)")
    parser.add_argument("--one", choices=BASES, help=argparse.SUPPRESS)
    told = parser.parse_args()
    folder = Path(told.folder or tempfile.mkdtemp()) / told.size
    if told.one:
        one(folder, told.one)
        return
    if not (folder / INDEX).is_file():
        written(folder, told.size)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2
    print("| base | GB above the imports | bytes a parameter | processor s |")
    print("| --- | ---: | ---: | ---: |")
    for base in BASES:
        command = [sys.executable, __file__, "--one", base, "--size", told.size]
        command += ["--folder", str(folder.parent)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        peak, seconds = map(int, done.stdout.split()[-2:])
        print(f"| {base} | {peak / 1e9:.2f} | {peak / size:.1f} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
