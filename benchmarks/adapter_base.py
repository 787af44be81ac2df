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
import tempfile
from pathlib import Path

from at_start import apart, parser_of, raised
from stream import INDEX, SHAPES, options, written

from fedprune import federate
from fedprune.config import configure

BASES = ("float32", "int8", "int4")


def run(folder: Path, base: str, length: int) -> None:
    """Prune the model, and train adapters over the base."""
    given = options(folder, texts=60, clients=2, length=length)
    given |= {"batch_size": 2, "local_steps": 2}
    given |= {"score": "wanda", "scope": "row", "agreement": False}
    given |= {"adapters": "lora", "adapter_base": base}
    federate(configure(given))


def tiny(base: str) -> None:
    """The same of a tiny model."""
    with tempfile.TemporaryDirectory() as place:
        written(Path(place), "tiny")
        run(Path(place), base, 8)


def main() -> None:
    """Print a row for every base."""
    parser = parser_of(__doc__, whole=True)
    parser.add_argument("--size", choices=SHAPES, default="60m")
    parser.add_argument("--folder", default="", help="where models are kept (default: nowhere)")
    parser.add_argument("--one", choices=BASES, help=argparse.SUPPRESS)
    told = parser.parse_args()
    folder = Path(told.folder or tempfile.mkdtemp()) / told.size
    if told.one:
        peak = raised(lambda: tiny(told.one), lambda: run(folder, told.one, 32))
        print(peak, round(sum(os.times()[:2])))
        return
    if not (folder / INDEX).is_file():
        written(folder, told.size)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2
    print("| base | GB above the imports | bytes a parameter | processor s |")
    print("| --- | ---: | ---: | ---: |")
    for base in BASES:
        where = ("--size", told.size, "--folder", folder.parent)
        said = apart(__file__, "--one", base, *where, OMP_NUM_THREADS="1")
        peak, seconds = map(int, said.split())
        print(f"| {base} | {peak / 1e9:.2f} | {peak / size:.1f} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
