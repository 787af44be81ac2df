"""A small run folder, made up but shaped like a real one, and its page without plots and board."""

import json
import math
from pathlib import Path
from typing import Any

from fedprune.report.page import write_html
from fedprune.report.pictures import pictures
from fedprune.report.reading import read_run

BLOCK = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up")]
ROUNDS, WARMUP, LAST_PRUNING = 12, 4, 9


def sparsity_at(round_: int, final: float) -> float:
    part = min(max(round_ - WARMUP, 0) / (LAST_PRUNING - WARMUP), 1.0)
    return final * (1 - (1 - part) ** 3)


def phase_at(round_: int) -> str:
    if round_ <= WARMUP:
        return "warmup"
    return "prune" if round_ <= LAST_PRUNING else "recover"


def row_of(arm: str, round_: int, metric: str) -> dict[str, Any]:
    final = 0.0 if arm == "dense" else 0.8
    now, before = sparsity_at(round_, final), sparsity_at(round_ - 1, final)
    loss = 1.7 + 2.6 * math.exp(-round_ / 3) + {"pruned": 0.5, "random": 0.9}.get(arm, 0.0) * now
    pruning = phase_at(round_) == "prune" and arm == "pruned"
    quality = math.exp(loss) if metric == "perplexity" else 1 - loss / 5
    return {
        "arm": arm,
        "round": round_,
        "phase": phase_at(round_),
        "sparsity": now,
        "removed": round(98304 * now),
        "loss": loss,
        metric: quality,
        "train_loss": loss - 0.1,
        "lr": 0.005 / round_,
        "cohort": [1, 4, 7, 12, 19],
        "answered": 5,
        "failures": [],
        "bytes_up": round(2.05e6 * round_ * (1 - now / 2)),
        "bytes_down": round(2.15e6 * round_ * (1 - now / 2)),
        "bytes_evaluation": round(8.2e6 * round_),
        "bytes_dense": round(4.1e6 * round_),
        "agreement": 1 - 0.6 * (now - before) / (1 - before) if pruning else None,
        "mask_digest": f"{round_:064x}",
        "weights_digest": f"{round_ + 1000:064x}",
    }


def layers_of(blocks: int) -> list[dict[str, Any]]:
    names = [f"model.layers.{i}.{part}.weight" for i in range(blocks) for part in BLOCK]
    shares = [0.01 + 0.3 * ((7 * i) % len(BLOCK)) / 5 + 0.04 * (i % 3) for i in range(len(names))]
    layers = [
        {"name": name, "kept": round(8192 * share), "total": 8192}
        for name, share in zip(names, shares, strict=True)
    ]
    layers[0]["kept"] += round(8192 * len(layers) * 0.2) - sum(layer["kept"] for layer in layers)
    return layers


def summary_of(rows: list[dict[str, Any]], metric: str, blocks: int) -> dict[str, Any]:
    last = {row["arm"]: row for row in rows}
    began = next(r for r in rows if r["round"] == WARMUP)
    tested = {"dense_at_pruning": began, "final": last["pruned"]}
    tested |= {arm: row for arm, row in last.items() if arm != "pruned"}
    quality = {
        name: {"loss": row["loss"], "perplexity": None, "accuracy": None, metric: row[metric]}
        | {"count": 41213}
        for name, row in tested.items()
    }
    return {
        "task": "shakespeare" if metric == "perplexity" else "digits",
        "metric": metric,
        "model": "LlamaForCausalLM",
        "unit": "tokens" if metric == "perplexity" else "examples",
        "seed": 7,
        "split": "natural",
        "clients": 20,
        "cohort": 5,
        "hosts": 8,
        "shard_sizes": [1250 + 37 * i for i in range(20)],
        "sparsity": 78643 / 98304,
        "sparsity_of_all": 78643 / 110912,
        "parameters": 110912,
        "prunable_parameters": 98304,
        "kept_parameters": 19661,
        "mask_digest": "a" * 64,
        "weights_digest": "b" * 64,
        "not_prunable": ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"],
        "quality": quality,
        "naive": {metric: 28.4 if metric == "perplexity" else 0.1},
        **{k: last["pruned"][k] for k in ("bytes_up", "bytes_down", "bytes_dense")},
        "bytes_evaluation": last["pruned"]["bytes_evaluation"],
        "bytes_on_disk": {"dense": 445_600, "pruned": 141_213},
        "layers": layers_of(blocks),
        "rounds_completed": ROUNDS,
        "rounds": ROUNDS,
        "failures": sum(len(row["failures"]) for row in rows),
        "seconds": 187.4,
        "engine": "ray",
        "command": "python simulations/run.py --config runs/shakespeare-20/config.toml --out again",
        "resume": "python simulations/run.py --resume runs/shakespeare-20",
    }


CONFIG = """\
task = "shakespeare"
clients = 20
cohort = 5
hosts = 8
rounds = 12
warmup = 4
sparsity = 0.8
score = "taylor"
scope = "global"
schedule = "cubic"
baselines = ["dense", "random"]
exclude = []
seed = 7
lr = 0.005
engine = "ray"
"""


def made_up(
    place: Path,
    arms: tuple[str, ...] = ("pruned", "dense", "random"),
    metric: str = "perplexity",
    blocks: int = 2,
    failures: tuple[dict[str, Any], ...] = (),
    **more: Any,
) -> Path:
    """The folder of a run, with ``more`` in its summary."""
    rows = [row_of(arm, r, metric) for arm in arms for r in range(1, ROUNDS + 1)]
    rows[5]["failures"] = list(failures)
    times = [{"arm": r["arm"], "round": r["round"], "seconds": 4.25} for r in rows]
    folder = place / "run"
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(CONFIG, "utf-8")
    for name, lines in (("rounds", rows), ("timings", times)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    (folder / "summary.json").write_text(json.dumps(summary_of(rows, metric, blocks) | more))
    return folder


def write_page(folder: Path) -> Path:
    run = read_run(folder)
    return write_html(folder, run, pictures(run))
