"""One-shot pruning of SmolLM2-135M by what clients of unlike domains send: the README's table.

    python benchmarks/llm.py --out FILE [--seeds 0 1 2 3 4] [--amounts 50 2:4 ...] [--minutes 40]
    python benchmarks/llm.py --out FILE --print

Four clients, one of each domain, calibrate on eight windows of 256 tokens that the seed draws; each
takes its statistics once, and all methods and sparsities are scored from these sums. *Federated*
scores the sum of all, which is the centralised score (law 5); *local* a client's own. Methods keep
one comparison group in both: rows for Wanda, RIA and votes, tensors for magnitude, SparseGPT and
`wanda_by_row`, the whole model for FLAP's units. Perplexity is over the first two test windows of
the first eight of twenty clients (4,096 tokens), which calibrate nobody. Passes are in bfloat16,
sums and scores in float64. The weights come from a 4-bit GGUF file.

Every figure is a line of FILE as soon as it is there; a line that is there is not measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from at_start import keep_line, parser_of
from llm_lines import AMOUNTS, GROUPS, UNITS, Line, down, lines_in, table, up, wanted

from fedprune.client.host import Host, build_host
from fedprune.config import RunConfig, configure
from fedprune.protocol.choice import Wanted, chosen, chosen_by, evidence_about
from fedprune.randomness import generator
from fedprune.scores.catalog import SCORES
from fedprune.scores.score import Evidence, Probe
from fedprune.structure.edits import Edit
from fedprune.structure.layout import layout_of
from fedprune.structure.surgery import reshaped
from fedprune.tasks.task import Part, batches
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Masks, Tensors, full_masks, masked

WINDOWS, HELD_OUT, CLIENTS = 8, 2, 4
SUMS = {"wanda": "wanda", "wanda_by_row": "wanda", "ria": "wanda", "votes": "wanda"}
"""Whose statistic a method is scored by, where it is another's."""


@dataclass(frozen=True)
class Bench:
    """What everything here is measured with."""

    host: Host
    dense: Tensors
    biases: Tensors
    file: Path
    amounts: Sequence[str]
    until: float


def bench_of(name: str, file: Path, amounts: Sequence[str], minutes: float) -> Bench:
    """The model in bfloat16, with biases of zeros where FLAP sets some."""
    config = configure(
        {"task": "domains", "model": name, "clients": 20, "cohort": CLIENTS,
         "engine": "inline", "local_steps": 0, "schedule": "one-shot", "agreement": False}
    )  # fmt: skip
    host = build_host(config)
    dense = {n: state_of(host.model)[n].clone() for n in host.layout.prunable}
    readers = [p.tensor for g in host.layout.structure.groups for p in g.parts if p.axis != "row"]
    edits = [Edit("bias", name.removesuffix(".weight")) for name in readers]
    model = reshaped(host.model, edits).to(torch.bfloat16).eval()
    layout = layout_of(model, output=("lm_head",))
    biases = {n: torch.zeros(model.config.hidden_size) for n in readers}
    host = replace(host, model=model, layout=layout)
    return Bench(host, dense, biases, file, amounts, time.monotonic() + 60 * minutes)


def config_of(bench: Bench, method: str, amount: str) -> RunConfig:
    score = "wanda" if method == "votes" else method
    keys: dict[str, Any] = {"score": score, "scope": GROUPS[method]}
    keys |= {"combine": "votes"} if method == "votes" else {}
    keys |= {"unit": "head-neuron"} if method == "flap" else {}
    keys["sparsity"] = 0.5 if amount == "2:4" else float(amount) / 100
    if amount == "2:4":
        keys |= {"unit": "n:m", "unit_shape": (2, 4), "scope": "global"}
    known = bench.host.config.given
    return configure({**{k: getattr(bench.host.config, k) for k in known}, **keys})


def put(bench: Bench, weights: Tensors, biases: Tensors) -> None:
    """Let the model compute with these."""
    own = dict(bench.host.model.named_parameters())
    with torch.no_grad():
        for name, w in weights.items():
            own[name].copy_(w)
        for name, b in biases.items():
            own[name.replace(".weight", ".bias")].copy_(b)


def perplexity(bench: Bench) -> float:
    total, count = 0.0, 0
    for p in range(2 * CLIENTS):
        test = {n: t[:HELD_OUT] for n, t in bench.host.shards[p].test.items()}
        with torch.no_grad():
            loss = bench.host.task.loss(bench.host.model, test)
        total, count = total + float(loss.total), count + loss.count
    return math.exp(total / count)


def windows_of(bench: Bench, seed: int, client: int) -> Part:
    part = bench.host.shards[client].train
    gen = generator(seed, "calibration", 1, client)
    drawn = torch.randperm(len(part["inputs"]), generator=gen)[:WINDOWS].sort().values
    return next(batches(part, WINDOWS, drawn))


def sums_of_client(bench: Bench, score: str, part: Part) -> Tensors:
    """A client's statistics for a score, by the dense model."""
    put(bench, bench.dense, bench.biases)
    host, masks = bench.host, full_masks(bench.dense, bench.dense)
    few, names = batches(part, 4), bench.host.layout.prunable
    given = (host.model, host.layout, names, few, host.task.loss, masks)
    probe = Probe(*given, unit="head-neuron" if score == "flap" else "weight")
    return SCORES[score].asks[0].collect(probe)


def evidence(bench: Bench, config: RunConfig, sums: Tensors) -> Evidence:
    held = (bench.dense, full_masks(bench.dense, bench.dense), 1)
    layout = bench.host.layout
    return evidence_about(held, layout.prunable, config, layout, sums=sums, count=1.0)


def own_masks(bench: Bench, method: str, amount: str, sums: Tensors) -> tuple[Masks, Tensors]:
    """The mask that evidence gives, and the weights under it."""
    c = config_of(bench, method, amount)
    found, score = evidence(bench, c, sums), SCORES[c.score]
    if score.step is not None:
        shares = dict.fromkeys(bench.dense, c.sparsity or 0.0)
        return score.step(found, shares, c.unit_shape)
    masks = chosen_by(score, found, Wanted(c.sparsity, c.scope), c, bench.host.layout)
    return masks, masked(bench.dense, masks)


def by_votes(bench: Bench, amount: str, clients: Sequence[Masks]) -> tuple[Masks, Tensors]:
    c = config_of(bench, "votes", amount)
    counts = {n: sum(m[n].double() for m in clients) for n in bench.dense}
    alive = full_masks(bench.dense, bench.dense)
    masks = chosen(counts, Wanted(c.sparsity, c.scope), c, bench.host.layout, alive, bench.dense)
    return masks, masked(bench.dense, masks)


def told(bench: Bench, line: Line, masks: Masks, weights: Tensors, sums: Tensors) -> None:
    """Measure a pruned model and write its line."""
    biases = dict(bench.biases)
    if line["method"] == "flap":
        c = config_of(bench, "flap", line["amount"])
        lost = SCORES["flap"].makes_up
        assert lost is not None
        biases |= lost(evidence(bench, c, sums), masks)
    put(bench, weights, biases)
    kept = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    found: Line = {"perplexity": perplexity(bench), "sparsity": 1 - kept}
    set_ = weights if line["method"] == "sparsegpt" else biases if line["method"] == "flap" else {}
    found |= {"down": down(masks, set_), "up": up(line["method"], sums, masks)}
    keep_line(bench.file, line | found)


def is_there(bench: Bench, line: Line) -> bool:
    """Whether it was measured or is not wanted, or there is no time left."""
    if time.monotonic() > bench.until or line["amount"] not in bench.amounts:
        return True
    return any(line.items() <= known.items() for known in lines_in(bench.file))


def one_seed(bench: Bench, seed: int, methods: Sequence[str]) -> None:
    """Every method of a family of statistics, federated and, for the first seed, local."""
    for statistic in dict.fromkeys(SUMS.get(m, m) for m in methods):
        those = [m for m in methods if SUMS.get(m, m) == statistic]
        if all(is_there(bench, line) for m in those for line in wanted(seed, m)):
            continue
        pooled: Tensors = {}
        alone: list[Tensors] = []
        for client in range(CLIENTS):
            own = sums_of_client(bench, statistic, windows_of(bench, seed, client))
            pooled = {n: t + pooled.get(n, 0) for n, t in own.items()}
            if statistic != "sparsegpt" or (client < 2 and not seed):
                alone.append(own)
        for method in those:
            of_method(bench, seed, method, pooled, alone)


def of_method(
    bench: Bench, seed: int, method: str, pooled: Tensors, alone: Sequence[Tensors]
) -> None:
    for line in wanted(seed, method):
        if is_there(bench, line):
            continue
        amount, who = line["amount"], line["who"]
        sums = pooled if who == "federated" else alone[int(who[-1])]
        if method == "votes":
            votes = [own_masks(bench, "wanda", amount, own)[0] for own in alone]
            masks, weights = by_votes(bench, amount, votes)
        else:
            masks, weights = own_masks(bench, method, amount, sums)
        told(bench, line, masks, weights, sums)


def magnitude(bench: Bench) -> None:
    """The dense model, and that pruned by size: nobody is asked."""
    dense = {"method": "dense", "amount": "0", "seed": 0, "who": "federated"}
    if not is_there(bench, dense):
        put(bench, bench.dense, bench.biases)
        keep_line(bench.file, {**dense, "perplexity": perplexity(bench)})
    for line in wanted(0, "magnitude"):
        if not is_there(bench, line):
            masks, weights = own_masks(bench, "magnitude", line["amount"], {})
            told(bench, line, masks, weights, {})


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="lines of figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=40.0, help="begin nothing after these")
    known = ("0", *UNITS, *AMOUNTS)
    parser.add_argument("--amounts", nargs="+", choices=known, default=known, help="columns")
    parser.add_argument("--model", default="smollm2", help="a model of the task domains")
    parser.add_argument("--print", action="store_true", help="the table of the lines there are")
    args = parser.parse_args()
    if not args.print:
        torch.set_num_threads(1)
        bench = bench_of(args.model, args.out, args.amounts, args.minutes)
        magnitude(bench)
        cheap = ["wanda", "ria", "votes", "flap", "wanda_by_row"]
        for seed in args.seeds:
            one_seed(bench, seed, [*cheap, "sparsegpt"] if not seed else cheap)
    print(table(lines_in(args.out)))


if __name__ == "__main__":
    main()
