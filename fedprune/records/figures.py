"""Figures of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.config import RunConfig
from fedprune.export.measure import (
    Forward,
    Spread,
    dense_values,
    forward_of,
    operations,
    size_of,
    speedup,
    spread_of,
    timed,
    zeros_as_masks,
)
from fedprune.export.quantise import is_quantised
from fedprune.protocol.models import dense_model, layout_for
from fedprune.protocol.origin import coded_size
from fedprune.structure.edits import Edits
from fedprune.tasks.catalog import tasks_of
from fedprune.tensors.lazy import joined_to, shapes_of, some_of
from fedprune.tensors.models import frozen_of, state_of
from fedprune.tensors.named import Masks, full_masks

Figures = dict[str, Any]


def figures_of(
    model: nn.Module, config: RunConfig, masks: Masks | None = None, edits: Edits = ()
) -> Figures:
    """What can be counted about a model, without a clock and without data.

    `masks`: True = kept; None: what is not 0.0 counts as kept.

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
    weights = joined_to(state_of(model), frozen_of(model))
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
    calls = {"model": lambda: forward.through(model), "other": lambda: forward.through(other)}
    with torch.no_grad():
        taken = timed(calls, repeats=repeats, warmup=warmup, threads=threads)
    mine, theirs = taken["model"], taken["other"]
    gain = {"speedup": _listed(speedup(theirs, mine))}
    return {"latency": _listed(spread_of(mine)), **gain}, {"latency": _listed(spread_of(theirs))}


def _listed(spread: Spread) -> list[float]:
    return [spread.median, spread.low, spread.high]


def figures_of_run(
    model: nn.Module,
    config: RunConfig,
    masks: Masks,
    edits: Edits = (),
    dense: Mapping[str, Tensor] | None = None,
) -> dict[str, Figures]:
    """The figures of a run's model and of the dense one, and their speed where it was cut.

    Without a cut there is nothing to time: both do the same products.

    `dense`: the dense model's state where it is at hand; then no other one is built for it.
    """
    pruned = figures_of(model, config, masks, edits)
    if not edits and dense is not None:
        return {"pruned": pruned, "dense": pruned | _kept_whole(model, config, masks, dense)}
    whole = dense_model(config).eval()
    prunable = layout_for(config, whole).prunable
    # Kept whole, as the file that it is compared with: a zero of the initialisation is no mask.
    whole_model = figures_of(whole, config, full_masks(state_of(whole), prunable))
    cut = pruned["parameters"] < whole_model["parameters"]
    forward = example_of(model, config, BATCH) if cut else None
    if forward is not None:
        fast, slow = compare_speed(model, whole, forward, repeats=REPEATS)
        pruned, whole_model = pruned | fast, whole_model | slow
    return {"pruned": pruned, "dense": whole_model}


def _kept_whole(
    model: nn.Module, config: RunConfig, masks: Masks, dense: Mapping[str, Tensor]
) -> Figures:
    """What differs in a model of the same shape whose state is this one, with nothing removed."""
    own = [n for n, _ in model.named_parameters() if n in dense]
    values = joined_to(dense_values(model), some_of(dense, own))
    full = {n: torch.ones((), dtype=torch.bool).expand(s) for n, s in shapes_of(masks).items()}
    nonzeros = sum(int(torch.count_nonzero(t)) for t in values.values())
    return {"nonzeros": nonzeros, "bytes_sparse": _coded(model, config, full, ())}


BATCH, REPEATS = 8, 10  # Examples of a pass that a report times, and how often
