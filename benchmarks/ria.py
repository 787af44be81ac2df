"""Why RIA is behind Wanda on SmolLM2-135M: what tells them apart, one difference at a time.

    python benchmarks/ria.py --out FILE [--parts power group grid] [--seeds 0 1] [--amounts 50 70]
    python benchmarks/ria.py --out FILE --print

Wanda is |w|·n; RIA is |w|·(1/C + 1/R)·n^a with a = 0.5 (Zhang et al. 2024, Plug-and-Play, eq. 3 and
4): n the root mean square of the weight's input, C and R the sums of |w| over its column and its
row. *power* has both forms with other powers of n; *group* compares within tensors, as their
authors' code does unless asked for rows (biomedical-cybernetics/Relative-importance-and-activation-
pruning, `--per_outneuron`); *grid* asks whether it is the four bits that the weights come from:
each is moved by chance within half a step of its block, so that they are on no grid, or rounded to
eight levels a block. Windows, held-out text and bfloat16 passes are those of `llm.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from at_start import keep_line, lines_of, parser_of
from llm import CLIENTS, Bench, bench_of, perplexity, put, sums_of_client, windows_of
from torch import Tensor

from fedprune import select
from fedprune.randomness import generator
from fedprune.scores.inputs import inputs_of, rows_of
from fedprune.structure.groups import input_of
from fedprune.tensors.named import Tensors, masked

WANDA = {"form": "|w|", "power": 1.0}
RIA = {"form": "relative", "power": 0.5}
BLOCK = 32
"""Weights of a row that have one step in GGUF's Q4_1, 16 levels."""

Line = dict[str, Any]


def wanted(part: str) -> Iterator[Line]:
    """The weights' grid, the score's form and power, and who is compared with whom."""
    if part == "power":
        for form in ("|w|", "relative"):
            for power in (0.0, 0.25, 0.5, 0.75, 1.0):
                yield {"grid": "file", "form": form, "power": power, "group": "row"}
    if part == "group":
        for score in (WANDA, RIA, RIA | {"power": 1.0}):
            yield {"grid": "file", **score, "group": "layer"}
    if part == "grid":
        for grid in ("none", "8 levels"):
            for score in (WANDA, RIA):
                yield {"grid": grid, **score, "group": "row"}


def on_grid(weights: Tensors, grid: str) -> Tensors:
    """The weights as the file has them, on no grid, or on one of eight levels a block."""
    if grid == "file":
        return weights
    gen = generator(0, "grid", 1)
    found = {}
    for name, w in weights.items():
        blocks = w.float().reshape(-1, BLOCK)
        low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
        if grid == "none":
            blocks = blocks + (torch.rand(blocks.shape, generator=gen) - 0.5) * (high - low) / 15
        else:
            step = ((high - low) / 7).clamp_min(1e-12)
            blocks = low + ((blocks - low) / step).round() * step
        found[name] = blocks.reshape(w.shape)
    return found


def scored(weights: Tensors, sums: Mapping[str, Tensor], form: str, power: float) -> Tensors:
    """Scores by this file's formulas, not by `fedprune.scores`."""
    found = {}
    for name, norm in norms(weights, sums).items():
        size = weights[name].float().abs()
        if form == "relative":
            size = size / size.sum(0) + size / size.sum(1, keepdim=True)
        found[name] = size * norm**power
    return found


def norms(weights: Tensors, sums: Mapping[str, Tensor]) -> Tensors:
    """The root mean square of each input of each tensor."""
    found = {}
    for name, source in SOURCES.items():
        found[name] = (sums[inputs_of(source)] / sums[rows_of(source)]).sqrt().float()
    return {name: found[name] for name in weights}


SOURCES: dict[str, str] = {}
"""By tensor: the one whose layer reads the same input, under whose name sums are."""


def slope(weights: Tensors, sums: Mapping[str, Tensor]) -> float:
    """How log(1/C + 1/R) goes with log n within a row, the mean over rows."""
    slopes = []
    for name, norm in norms(weights, sums).items():
        size = weights[name].float().abs()
        x = norm.clamp_min(1e-12).log()
        y = (1 / size.sum(0) + 1 / size.sum(1, keepdim=True)).log()
        x = x - x.mean()
        slopes.append(float(((y - y.mean(1, keepdim=True)) * x).sum(1).mean() / x.square().sum()))
    return mean(slopes)


def measured(bench: Bench, line: Line, sums: Mapping[str, Tensor]) -> None:
    """Prune, measure, and write the line."""
    weights = on_grid(bench.dense, line["grid"])
    scores = scored(weights, sums, line["form"], line["power"])
    rules = {"scope": line["group"], "layout": bench.host.layout, "magnitude": weights}
    masks = select(scores, line["amount"] / 100, **rules)
    put(bench, masked(weights, masks), bench.biases)
    keep_line(bench.file, line | {"perplexity": perplexity(bench)})


def one_seed(bench: Bench, seed: int, parts: Sequence[str], amounts: Sequence[int]) -> None:
    """Statistics of the four clients' windows, once a grid, and every line that is not there."""
    lines = [w | {"amount": a, "seed": seed} for p in parts for w in wanted(p) for a in amounts]
    left = [x for x in lines if not any(x.items() <= k.items() for k in lines_of(bench.file))]
    for grid in dict.fromkeys(line["grid"] for line in left):
        moved = replace(bench, dense=on_grid(bench.dense, grid))
        sums: Tensors = {}
        for client in range(CLIENTS):
            own = sums_of_client(moved, "wanda", windows_of(bench, seed, client))
            sums = {n: t + sums.get(n, 0) for n, t in own.items()}
        put(moved, moved.dense, bench.biases)
        about = {"seed": seed, "grid": grid, "dense": perplexity(moved)}
        keep_line(bench.file, about | {"slope": slope(moved.dense, sums)})
        for line in left:
            if line["grid"] == grid:
                measured(bench, line, sums)


def table(lines: Sequence[Line]) -> str:
    """A line for each score and group, mean perplexity over seeds by amount."""
    rows: dict[tuple[Any, ...], dict[int, list[float]]] = {}
    for line in lines:
        if "amount" in line:
            key = tuple(line[k] for k in ("grid", "group", "form", "power"))
            rows.setdefault(key, {}).setdefault(line["amount"], []).append(line["perplexity"])
    amounts = sorted({a for row in rows.values() for a in row})
    head = ["grid", "group", "weight", "power of n", *(f"{a} %" for a in amounts)]
    text = [head, ["---"] * len(head)]
    for key, row in rows.items():
        cells = [f"{mean(row[a]):,.1f} ({len(row[a])})" if a in row else "" for a in amounts]
        text.append([*map(str, key), *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in text)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="lines of figures")
    parts = ("power", "group", "grid")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--amounts", type=int, nargs="+", default=[50, 70])
    parser.add_argument("--print", action="store_true", help="the table of the lines there are")
    args = parser.parse_args()
    if not args.print:
        torch.set_num_threads(1)
        bench = bench_of("smollm2", args.out, (), 0.0)
        SOURCES.update(input_of(bench.host.layout, bench.host.layout.prunable))
        for seed in args.seeds:
            one_seed(bench, seed, args.parts, args.amounts)
    print(table(lines_of(args.out)))


if __name__ == "__main__":
    main()
