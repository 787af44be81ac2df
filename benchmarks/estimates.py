"""What `--dry-run` says beforehand, and what the run then takes: bytes, operations, memory, time.

    python benchmarks/estimates.py [--rows digits,default,one-shot,...]

Each run takes place three times in a process of its own: rehearsed, run (its time is that of the
processor from the built model to the written report, its memory what is resident at the peak), and
run once more with PyTorch's counter of operations. A column is said / taken; exit code 1 if one of
them is off by more than a quarter.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from at_start import apart, load, parser_of

ROWS: dict[str, dict[str, Any]] = {
    "digits": {"task": "digits"},
    "default": {},
    "one-shot": {"task": "digits", "score": "wanda", "schedule": "one-shot", "model": "vit"},
    "heterofl": {"task": "digits", "method": "heterofl"},
    "secure": {"task": "digits", "model": "mlp", "secure": "secagg", "rounds": 12, "end": 8},
    "int8": {"task": "digits", "uplink": "int8", "baselines": ("dense",)},
    "cut": {"task": "digits", "unit": "channel", "sparsity": 0.5, "shrink": "every"},
    "noise": {"task": "digits", "model": "mlp", "dp": "example", "dp_noise": 1.0, "panel": 4},
    "votes": {"task": "digits", "combine": "votes", "model": "mlp"},
}
"""The options of each run."""

MOST = 0.25


def said(options: dict[str, Any]) -> dict[str, float]:
    """The estimate."""
    from fedprune import estimate

    found = estimate(**options)
    return {
        **{key: found.traffic[key] for key in ("bytes_up", "bytes_down")},
        "flops": found.flops,
        "memory": found.memory,
        "seconds": found.seconds,
    }


def taken(options: dict[str, Any], *, counting: bool) -> dict[str, float]:
    """What a run takes, or, `counting`, its operations alone."""
    from torch.utils.flop_counter import FlopCounterMode

    from fedprune.client.host import build_host
    from fedprune.config import RunConfig
    from fedprune.engines.inline import inline_port
    from fedprune.run import run_federated
    from fedprune.runtime.process import resident

    config = RunConfig(**options)
    port = inline_port(build_host(config))
    if counting:
        with FlopCounterMode(display=False) as counter:
            run_federated(config, port)
        return {"flops": float(counter.get_total_flops())}
    began = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        summary = run_federated(config, port, folder=Path(place) / "run").summary
    seconds, memory = time.process_time() - began, float(resident("VmHWM"))
    traffic = {key: float(summary[key]) for key in ("bytes_up", "bytes_down")}
    return {**traffic, "memory": memory, "seconds": seconds}


def row(name: str) -> tuple[str, bool]:
    """A row of the table, and whether all of it is near enough."""
    words = (__file__, "--rows", name, "--child")
    before: dict[str, float] = json.loads(apart(*words, "said"))
    after = json.loads(apart(*words, "taken")) | json.loads(apart(*words, "counted"))
    ratios = {key: before[key] / after[key] for key in before}
    cells = " | ".join(f"{ratio:.2f}" for ratio in ratios.values())
    told = f"{after['bytes_up'] / 1e6:.1f} MB | {after['seconds']:.1f} s"
    return f"| {name} | {told} | {cells} |", all(abs(r - 1) <= MOST for r in ratios.values())


def main() -> int:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--child", choices=("said", "taken", "counted"))
    args = parser.parse_args()
    if args.child:
        options = {**ROWS[args.rows], "engine": "inline"}
        counting = args.child == "counted"
        print(
            json.dumps(said(options) if args.child == "said" else taken(options, counting=counting))
        )
        return 0
    print(f"{load()}\n")
    print("| run | up | took | bytes up | bytes down | operations | memory | time |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    found = []
    for name in args.rows.split(","):
        line, near = row(name)
        found.append(near)
        print(line, flush=True)
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
