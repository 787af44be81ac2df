"""A model's size, operations, speed and quality beside another's: the table that people compare.

``fedprune measure`` prints it and every run's report has it, from the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedprune.compression.coded import coded_size
from fedprune.compression.quantising import is_quantised
from fedprune.config import RunConfig
from fedprune.measuring import (
    Forward,
    Spread,
    forward_of,
    operations,
    size_of,
    speedup,
    spread_of,
    timed,
    zeros_as_masks,
)
from fedprune.plugins import tasks_of
from fedprune.pruning.edits import Edits
from fedprune.report.reading import (
    NONE,
    Run,
    measure,
    number,
    percent,
    ratio,
    significant,
    size,
    whole,
    worded,
)
from fedprune.report.tables import Table
from fedprune.shapes import dense_model, layout_for
from fedprune.tensors import Masks, frozen_of, full_masks, state_of

Figures = dict[str, Any]

UNCHANGED = (
    "Nothing was cut out: zeros make the file smaller, but a forward pass multiplies by every one "
    "of them and takes as long as before."
)


def figures_of(
    model: nn.Module, config: RunConfig, masks: Masks | None = None, edits: Edits = ()
) -> Figures:
    """What can be counted about a model, without a clock and without data.

    Args:
        model: in eval mode on the CPU.
        config: of the task it is for.
        masks: True = kept; None: what is not 0.0 counts as kept.
        edits: what was edited in its shape.

    Returns:
        ``parameters``, ``nonzeros``, ``bytes_dense`` (fp32), ``bytes_held`` (in memory),
        ``bytes_sparse`` (the coded file; None for a quantised model) and ``flops`` (one example;
        None where the task has no example to show).
    """
    held = size_of(model)
    forward = example_of(model, config)
    return {
        **vars(held),
        "bytes_sparse": _coded(model, config, masks, edits),
        "flops": None if forward is None else operations(model, forward),
    }


def example_of(model: nn.Module, config: RunConfig, batch: int = 1) -> Forward | None:
    """What the configuration's task calls the model with, see `forward_of`; None if it fails."""
    try:
        return forward_of(tasks_of(config.plugin)[config.task], model, config, batch)
    except Exception:  # a loss of the user's own that fails without data: the rest is still told
        return None


def _coded(model: nn.Module, config: RunConfig, masks: Masks | None, edits: Edits) -> int | None:
    weights = {**state_of(model), **frozen_of(model)}
    if is_quantised(model):
        return None
    if masks is None:
        names = [n for n, w in weights.items() if w.dim() > 1 and bool((w == 0).any())]
        masks = zeros_as_masks(model, names)
    return coded_size(config, weights, masks, edits)


def compare_speed(
    model: nn.Module,
    other: nn.Module,
    forward: Forward,
    *,
    repeats: int = 20,
    warmup: int = 3,
    threads: int = 1,
) -> tuple[Figures, Figures]:
    """Latency in seconds of both on the same input, call by call in turns; the first has the ratio.

    Returns:
        ``latency`` [median, lower and upper quartile] for each, and for the first ``speedup``, how
        many times faster than the other it is.
    """
    calls = {
        "model": lambda: forward.through(model),
        "other": lambda: forward.through(other),
    }
    with torch.no_grad():
        taken = timed(calls, repeats=repeats, warmup=warmup, threads=threads)
    mine, theirs = taken["model"], taken["other"]
    gain = {"speedup": _listed(speedup(theirs, mine))}
    return {"latency": _listed(spread_of(mine)), **gain}, {"latency": _listed(spread_of(theirs))}


def _listed(spread: Spread) -> list[float]:
    return [spread.median, spread.low, spread.high]


def figure_table(named: Mapping[str, Figures], metric: str) -> Table:
    """One column for each model, a last one for what the first is of the second.

    What nobody measured has no row.
    """
    first, *others = named.values()
    rows = []
    for key, words, say in _ROWS:
        if any(f.get(key) is not None for f in named.values()):
            share = percent(ratio(first.get(key), others[0].get(key))) if others else NONE
            rows.append([words, *(say(f.get(key)) for f in named.values()), share])
    if any(f.get("latency") for f in named.values()):
        rows.append([LATENCY, *(_time(f.get("latency")) for f in named.values()), _gain(first)])
    if any(f.get("quality") for f in named.values()):
        reached = [(f.get("quality") or {}).get(metric) for f in named.values()]
        rows.append(
            [f"test {worded(metric)}", *(measure(metric, value) for value in reached), NONE]
        )
    columns = ["figure", *named, *(["of it"] if others else [])]
    return Table(columns, [row[: len(columns)] for row in rows], ("figure",))


LATENCY = "forward pass (quartiles)"

_ROWS = (
    ("parameters", "parameters", whole),
    ("nonzeros", "non-zero", whole),
    ("bytes_dense", "all numbers in fp32", size),
    ("bytes_sparse", "sparse file", size),
    ("bytes_held", "tensors in memory", size),
    ("bytes_on_disk", "on disk", size),
    ("flops", "FLOPs of an example", significant),
    ("peak_memory", "peak memory of a pass", size),
)


def _time(spread: Sequence[float] | None) -> str:
    if not spread:
        return NONE
    median, low, high = (significant(1000 * number(value)) for value in spread)
    return f"{median} ms ({low} to {high})"


def _gain(figures: Figures) -> str:
    if not figures.get("speedup"):
        return NONE
    median, low, high = map(significant, figures["speedup"])
    return f"{median} times as fast ({low} to {high})"


def notes_on(model: Figures, other: Figures) -> list[str]:
    """What has to be said beside the table."""
    sparse = number(model.get("bytes_sparse")) < number(model.get("bytes_dense"))
    return [UNCHANGED] if sparse and model["parameters"] == other["parameters"] else []


def figures_of_run(
    model: nn.Module, config: RunConfig, masks: Masks, edits: Edits = ()
) -> dict[str, Figures]:
    """The figures of a run's model and of the dense one, and their speed where it was cut.

    Without a cut there is nothing to time: both do the same products.
    """
    dense = dense_model(config).eval()
    prunable = layout_for(config, dense).prunable
    pruned = figures_of(model, config, masks, edits)
    # Kept whole, as the file that it is compared with: a zero of the initialisation is no mask.
    whole_model = figures_of(dense, config, full_masks(state_of(dense), prunable))
    forward = example_of(model, config, BATCH)
    if pruned["parameters"] < whole_model["parameters"] and forward is not None:
        fast, slow = compare_speed(model, dense, forward, repeats=REPEATS)
        pruned, whole_model = pruned | fast, whole_model | slow
    return {"pruned": pruned, "dense": whole_model}


BATCH, REPEATS = 8, 10
"""Examples of a pass that a report times, and how often."""


def figures_in(run: Run) -> tuple[Table, list[str]]:
    """The table of a run's report and what has to be said beside it; empty where not written."""
    named: dict[str, Figures] = {n: dict(f) for n, f in (run.figures or {}).items()}
    if not named:
        return Table([], []), []
    quality = run.summary.get("quality") or {}
    named["pruned"]["quality"] = quality.get("final")
    named["dense"]["quality"] = quality.get("dense") or quality.get("dense_at_pruning")
    return figure_table(named, run.metric), notes_on(named["pruned"], named["dense"])
