"""What of a configuration a model does not go with: sparsity, score, noise, units and targets."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedprune.config import RunConfig
from fedprune.options.refusal import refuse
from fedprune.protocol.choice import Wanted, chooses_apart, chosen, chosen_apart, rules_of
from fedprune.protocol.origin import coded_size
from fedprune.redundancy.reconstruction import RECONSTRUCTIONS
from fedprune.scores.catalog import scores_of
from fedprune.selection.budget import sparsest
from fedprune.selection.options import Pruning
from fedprune.selection.ranking import Unreachable
from fedprune.selection.select import check_reachable
from fedprune.selection.units import removable
from fedprune.streaming.blocks import block_paths
from fedprune.streaming.packed import PackedMasks
from fedprune.structure.flops import flops, positions_of
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.options import Data
from fedprune.tensors.lazy import in_memory, shapes_of
from fedprune.tensors.models import frozen_of, state_of
from fedprune.tensors.named import Masks, Tensors, full_masks


def check_model(config: RunConfig, model: nn.Module, layout: Layout) -> None:
    """Refuse a model that a configuration does not go with.

    Raises:
        ValueError: one line with the key, the value and what is allowed.
    """
    _check_reach(config, layout)
    _check_score(config, model, layout)
    _check_target(config, model, layout)
    _check_noise(config, model)


def _check_reach(config: Pruning, layout: Layout) -> None:
    """Refuse a sparsity that floors or units do not allow."""
    sizes = [layout.shapes[name].numel() for name in layout.prunable]
    gone = math.floor((config.sparsity or 0.0) * sum(sizes) + 0.5)
    whole = config.unit in {"expert", "sublayer", "layer"}
    if not whole and gone > sum(max(0, size - config.floor) for size in sizes):
        raise ValueError(
            f"floor={config.floor}: in each of {len(sizes)} tensors, while sparsity="
            f"{config.sparsity} leaves {sum(sizes) - gone} weights in all; allowed: a smaller one"
        )
    able = removable(layout, config.unit, config.unit_shape) / sum(sizes)
    if config.unit != "n:m" and (config.sparsity or 0.0) > able:
        raise ValueError(
            f"sparsity={config.sparsity}: units of kind {config.unit} are {able:.4g} of the "
            f"prunable weights; allowed: 0 to {able:.4g}"
        )


def _check_score(config: RunConfig, model: nn.Module, layout: Layout) -> None:
    """Refuse a model that the score is not for."""
    score, task = scores_of(config.plugin)[config.score], tasks_of(config.plugin)[config.task]
    size = sum(layout.shapes[name].numel() for name in layout.prunable)
    if score.most and config.unit == "weight" and size > score.most:
        raise ValueError(
            f"score={config.score!r}: one pass for each of {size:,} weights; allowed: up to "
            f"{score.most:,} of them, larger units (--unit), or --score perturbation"
        )
    if config.gradient_blocks and not block_paths(model):
        refuse("gradient_blocks", True, "the model has no list of blocks", "false")
    if score.refuses is not None:
        score.refuses(model, None if task.dummy is None else task.dummy(config))
    for ask in score.asks:  # a statistic that these tensors do not have is refused here
        ask.shapes(layout, layout.prunable, config.unit, config.probes or 0)
    if config.reconstruct is not None:
        _check_reconstruct(config, layout)
    if config.sparsity and score.step is None:
        _check_selection(config, model, layout)


def _check_reconstruct(config: RunConfig, layout: Layout) -> None:
    """Refuse a model whose layers cannot be fitted."""
    assert config.reconstruct is not None
    kind = RECONSTRUCTIONS[config.reconstruct]
    kind.ask.shapes(layout, layout.prunable, config.unit, 0)
    if kind.needs_before and layout.structure.mixtures:
        why = "the pruned model sends tokens to other experts than the one before"
        refuse("reconstruct", config.reconstruct, why, "inputs, or a model without experts")


def _check_noise(config: Data, model: nn.Module) -> None:
    """Refuse a model that noise cannot protect anybody in."""
    mixing = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    if config.dp == "none" or not mixing:
        return
    why = {
        "example": f"BatchNorm ({mixing[0]}) mixes the examples of a batch",
        "client": f"noise would make the running variances of BatchNorm ({mixing[0]}) negative",
    }
    refuse("dp", config.dp, why[config.dp], "none, or a model without it")


def _check_selection(config: RunConfig, model: nn.Module, layout: Layout) -> None:
    """Refuse patterns, units and floors that this model's tensors do not fit, by trying them."""
    state = state_of(model)
    if in_memory(state):
        weights = {name: state[name].cpu() for name in layout.prunable}
    else:  # their shapes are what matters, and there is one of each
        of_shape = {layout.shapes[n]: n for n in reversed(layout.prunable)}
        weights = {n: torch.zeros(1).expand(s) for s, n in of_shape.items()}
    try:
        _tried(config, layout, weights)
    except Unreachable as error:
        nearest, reason = error.nearest / error.size, f"by magnitude, {error}"
        if nearest < (config.sparsity or 0.0):
            refuse("sparsity", config.sparsity, reason, f"0 to {math.floor(nearest * 1e4) / 1e4}")
        refuse("sparsity", config.sparsity, reason, f"from {math.ceil(nearest * 1e4) / 1e4}")


def _tried(config: RunConfig, layout: Layout, weights: Tensors) -> None:
    """Prune by magnitude; of single weights without working out which ones."""
    c = config
    if c.unit == "weight":
        check_reachable(weights, c.sparsity or 0.0, rules_of(Wanted(c.sparsity, c.scope), c))
        return
    wanted, shapes = Wanted(c.sparsity, c.scope), shapes_of(weights)
    if chooses_apart(wanted, c, layout):
        alive = PackedMasks(shapes, dict.fromkeys(shapes))
        chosen_apart(lambda n: weights[n].abs(), wanted, c, layout, alive, weights)
        return
    scores = {name: w.abs() for name, w in weights.items()}
    chosen(scores, wanted, c, layout, full_masks(weights, weights), weights)


def _check_target(config: RunConfig, model: nn.Module, layout: Layout) -> None:
    """Refuse a target that even the sparsest masks that are allowed miss, by magnitude."""
    c, state = config, state_of(model)
    if c.target_bytes is None and c.target_flops is None:
        return
    weights = {name: state[name].cpu() for name in layout.prunable}
    alive, scores = full_masks(weights, weights), {n: w.abs() for n, w in weights.items()}

    def at(sparsity: float) -> Masks:
        return chosen(scores, Wanted(sparsity, c.scope), c, layout, alive, weights)

    masks = sparsest(at, 0.0, layout.whole)
    if c.target_bytes is not None:
        lowest: float = coded_size(c, {**state, **frozen_of(model)}, masks)
        if lowest > c.target_bytes:
            refuse("target-bytes", c.target_bytes, "what stays weighs more", f"from {lowest}")
    elif c.target_flops is not None:
        task = tasks_of(c.plugin)[c.task]
        assert task.dummy is not None  # the rules refuse the option without one
        rows = positions_of(model, layout, task.dummy(c), task.loss)
        whole = flops({n: torch.ones_like(m) for n, m in masks.items()}, rows)
        lowest = flops(masks, rows) / whole
        if lowest > c.target_flops:
            refuse("target-flops", c.target_flops, "what stays costs more", f"from {lowest:.4g}")
