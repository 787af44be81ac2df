"""Peak memory of full tuning in one process, in bytes a parameter, over the size of the model.

    python benchmarks/memory.py [--sizes 20000000 80000000] [--clients 2] [--cohort 2] [--most 32]
    python benchmarks/memory.py --bert --clients 100 --cohort 4

Every size is a whole run in a fresh process (`fedprune.federate`, inline, AdamW, one local step,
clipping, two rounds of averaging, measured on validation and test): memory is how far the peak of
what is resident lies above what is resident once the imports are done and a run of 100,000
parameters is over. It fails where that is more than `--most` bytes a parameter at the largest size.
With `--bert` it is BERT-base from its configuration, every client with four rows of eight tokens,
measured on validation and test by everyone at the end alone.
"""

from __future__ import annotations

import argparse

from at_start import HERE, apart, parser_of, raised
from moving_task import BERT, SIZES

from fedprune import federate
from fedprune.config import configure

PLUGIN = str(HERE / "moving_task.py")


BERTS = 109_489_930
"""Parameters of BERT-base with a head of ten classes."""


def run(size: int, clients: int, cohort: int) -> None:
    """Play a run of this size."""
    task = f"moving-{BERT if size == BERTS else size}"
    given = {"task": task, "plugin": PLUGIN, "engine": "inline", "split": "iid"}
    keys = {"clients": clients, "cohort": cohort, "hosts": 1, "rounds": 2, "sparsity": 0.0}
    keys |= {"measure_every": 2} if size == BERTS else {}
    federate(configure({**given, **keys}))


def main() -> None:
    """Print the curve; fail where it ends above the budget."""
    parser = parser_of(__doc__, whole=True)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES[1:5], choices=SIZES)
    parser.add_argument("--bert", action="store_true", help="BERT-base instead of the sizes")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--cohort", type=int, default=2)
    parser.add_argument("--most", type=float, default=32.0)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        who = (told.clients, told.cohort)
        print(raised(lambda: run(SIZES[0], *who), lambda: run(told.one, *who)))
        return
    print("| parameters | GiB above the imports | bytes a parameter |")
    print("| ---: | ---: | ---: |")
    each = 0.0
    for size in [BERTS] if told.bert else told.sizes:
        who = ("--clients", told.clients, "--cohort", told.cohort)
        peak = int(apart(__file__, "--one", size, *who, OMP_NUM_THREADS="1"))
        each = peak / size
        print(f"| {size:,} | {peak / 2**30:.2f} | {each:.1f} |", flush=True)
    raise SystemExit(f"{each:.1f} bytes, wanted {told.most:g}" if each > told.most else 0)


if __name__ == "__main__":
    main()
