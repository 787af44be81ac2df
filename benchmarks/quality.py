"""What one-shot pruning by each score costs on the default task, before and after fine-tuning.

    python benchmarks/quality.py [--seeds 0 1 2] [--sparsities 0.5 0.8 0.9 0.95] [--out FILE]

For every seed one dense warm-up (8 rounds, 6 of 20 clients each), then from its weights, for every
method and sparsity: one scoring question to the round's cohort, one mask, test perplexity over all
clients ("before"), six rounds of masked fine-tuning, test perplexity again ("after"). Every method
prunes within its own paper's comparison group. The table has mean and standard deviation over the
seeds; seeds run side by side. Nothing is chosen by these numbers.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from at_start import parser_of

from fedprune.client.host import Host, build_host
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.methods import acting
from fedprune.methods.catalog import method_name, method_of
from fedprune.methods.measuring import measure
from fedprune.opening import dense_packet
from fedprune.protocol.port import Port
from fedprune.randomness import draw, generator
from fedprune.rounds import loop
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.rows import quality
from fedprune.server.state import State, first_state

METHODS: dict[str, dict[str, Any]] = {
    "random": {"score": "random"},
    "magnitude": {"score": "magnitude"},
    "gradient": {"score": "gradient"},
    "taylor": {"score": "taylor"},
    "fisher": {"score": "fisher"},
    "wanda": {"score": "wanda", "scope": "row"},
    "votes": {"score": "wanda", "combine": "votes", "scope": "layer"},
    "sparsegpt": {"score": "sparsegpt", "scope": "layer"},
}
"""Options of every line of the table; the scope is ``global`` unless it says another."""

WARMUP, TUNING = 8, 6
DENSE = "dense"

Line = dict[str, Any]


def options(seed: int, **changes: Any) -> dict[str, Any]:
    """A run of the default task that prunes once, after the warm-up."""
    fixed = {"task": "shakespeare", "engine": "inline", "seed": seed, "schedule": "one-shot"}
    return {**fixed, "rounds": WARMUP + TUNING, "warmup": WARMUP, "agreement": False, **changes}


def perplexity(state: State, plan: Plan, port: Port) -> float:
    """Test perplexity over all clients."""
    _, totals = measure(state, Round(state.round, plan), port, "test")
    return (quality(totals, plan.config) or {})["perplexity"]


def round_of(state: State, plan: Plan, port: Port) -> Round:
    """The state's round, cohort as in a run."""
    c = plan.config
    cohort = draw(list(port.present()), c.cohort, generator(c.seed, "cohort", state.round))
    return Round(state.round, plan, cohort)


def pruned(state: State, r: Round, port: Port) -> State:
    """The state after one pruning."""
    memory = state.memories[method_name(r.config)]
    talk = method_of(r.config).before(state.model, memory, r)
    state, step = acting.held(state, r, port, talk)
    return replace(state, model=step.model)


def tuned(state: State, r: Round, port: Port) -> State:
    """The state after one round of tuning."""
    state, model, _ = acting.trained(state, r, port)
    assert model is not None  # everyone is here
    return replace(state, model=model)


def line(host: Host, warm: State, name: str, sparsity: float) -> Line:
    """Perplexity before and after fine-tuning for one method at one sparsity."""
    changes = METHODS.get(name, {"score": "magnitude"})
    config = configure(options(host.config.seed, sparsity=sparsity, **changes))
    port = inline_port(replace(host, config=config))
    plan = Plan(config, host.layout, (0, 0), host.model)
    state = replace(warm, round=WARMUP + 1)
    if name != DENSE:
        state = pruned(state, round_of(state, plan, port), port)
    before = perplexity(state, plan, port)
    state = tuned(state, round_of(state, plan, port), port)
    while state.round < config.rounds:
        state = replace(state, round=state.round + 1)
        state = tuned(state, round_of(state, plan, port), port)
    after = perplexity(state, plan, port)
    return {
        "seed": config.seed,
        "method": name,
        "sparsity": sparsity,
        "before": before,
        "after": after,
    }


def lines_of(work: tuple[int, list[float], Path]) -> list[Line]:
    """Every line of one seed, appended to the file as they come."""
    seed, sparsities, out = work
    host = build_host(configure(options(seed)))
    fresh = first_state(host.model, host.layout)
    plan = Plan(host.config, host.layout, dense_packet(host.layout))
    warm = next(s for s, _ in loop(fresh, plan, inline_port(host)) if s.round == WARMUP)
    jobs = [(DENSE, 0.0), *((name, s) for s in sparsities for name in METHODS)]
    found = []
    for name, sparsity in jobs:
        found.append(line(host, warm, name, sparsity))
        with out.open("a") as file:
            file.write(json.dumps(found[-1]) + "\n")
        print(found[-1], flush=True)
    return found


def table(lines: Sequence[Line], sparsities: Sequence[float]) -> str:
    """Markdown: methods down, sparsities across, perplexity before → after, mean (sd)."""
    head = ["method", *(f"{s:.0%}" for s in sparsities)]
    rows = [head, ["---", *["---:"] * len(sparsities)]]
    for name in METHODS:
        cells = [
            " → ".join(
                cell([x[key] for x in lines if (x["method"], x["sparsity"]) == (name, s)])
                for key in ("before", "after")
            )
            for s in sparsities
        ]
        rows.append([f"`{name}`", *cells])
    dense = [x for x in lines if x["method"] == DENSE]
    note = " → ".join(cell([x[key] for x in dense]) for key in ("before", "after"))
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{text}\n\nWithout pruning, the same rounds: {note}"


def cell(values: Sequence[float]) -> str:
    """Mean (standard deviation) of a few values."""
    if not values:
        return "-"
    digits = 2 if mean(values) < 100 else 0
    spread = stdev(values) if len(values) > 1 else math.nan
    return f"{mean(values):.{digits}f} ({spread:.{digits}f})"


def main() -> None:
    """Measure and print, or print what a file holds already."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--workers", type=int, default=2, help="seeds measured side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/quality.jsonl"))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.unlink(missing_ok=True)
    work = [(seed, given.sparsities, given.out) for seed in given.seeds]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        lines = [x for found in pool.map(lines_of, work, chunksize=1) for x in found]
    print(table(lines, given.sparsities))


if __name__ == "__main__":
    main()
