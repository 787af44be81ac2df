"""The model that a configuration and a list of edits describe, and its layout.

Any side of a run rebuilds it: the dense model is the same bits everywhere, the edits are replayed
on it, and its values come with the question.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedprune.adapters.targets import check_adaptable
from fedprune.config import RunConfig, to_toml, with_values
from fedprune.options.refusal import refuse
from fedprune.protocol.choice import Wanted, chosen, rules_of
from fedprune.protocol.origin import coded_size, with_channels
from fedprune.randomness import seeded
from fedprune.redundancy.reconstruction import RECONSTRUCTIONS
from fedprune.scores.catalog import scores_of
from fedprune.selection.budget import sparsest
from fedprune.selection.ranking import Unreachable
from fedprune.selection.select import check_reachable
from fedprune.selection.units import removable
from fedprune.streaming.blocks import block_paths, follow_parameters
from fedprune.structure.cuts import places
from fedprune.structure.edits import CUTS, Edits
from fedprune.structure.flops import flops, positions_of
from fedprune.structure.layout import Layout, Origin, layout_of
from fedprune.structure.surgery import reshaped
from fedprune.structure.tables import embedding_path
from fedprune.tasks.building import built
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import output_of
from fedprune.tensors.lazy import in_memory
from fedprune.tensors.models import frozen_of, state_of
from fedprune.tensors.named import Masks, Tensors, full_masks


def dense_model(config: RunConfig) -> nn.Module:
    """The task's model before round one; the same bits in every process.

    Raises:
        ValueError: as `built`, and as `fedprune.structure.depgraph.recognise` where the
            configuration asks for it.
    """
    task = tasks_of(config.plugin)[config.task]
    with seeded(config.seed, "init"):
        model = built(task, config)
    return with_channels(model, config, task)


def shaped(config: RunConfig, edits: Edits) -> tuple[nn.Module, Layout]:
    """The model with these edits and its layout; its values are not those of any state yet.

    Raises:
        ValueError: an edit does not fit the model.
    """
    model = dense_model(config)
    if not edits:
        return model, layout_for(config, model)
    return model, layout_after(config, model, edits)


def layout_after(config: RunConfig, model: nn.Module, edits: Edits) -> Layout:
    """Replay the edits on the dense model, in place, and give the layout of what it has become.

    The layout knows the one before anything was cut (after layers became factors, which cuts go
    through), so that choices count its weights; unless matrices are shared, which ends cutting.
    """
    output = output_of(tasks_of(config.plugin)[config.task], model)
    whole = layout_of(model, output=output, exclude=config.exclude, include=config.include).whole
    cuts = tuple(edit for edit in edits if edit.kind in CUTS)
    if any(edit.kind == "share" for edit in edits):
        return replace(_layout_now(config, reshaped(model, edits), output), dense=whole)
    reshaped(model, [edit for edit in edits if edit.kind not in CUTS])
    follow_parameters(model)
    before = _layout_now(config, model, output)
    # Without factors it is the dense one, of whose weights a sparsity is a fraction as it is.
    before = before if before.whole == whole else replace(before, dense=whole)
    if not cuts:
        return before
    spots = places(model, cuts)
    layout = _layout_now(config, reshaped(model, cuts), output)
    return replace(layout, origin=Origin(before, spots), dense=whole)


def _layout_now(config: RunConfig, model: nn.Module, output: tuple[str, ...]) -> Layout:
    """The layout of an edited model: patterns may match what is no longer there."""
    names = [name for name, _ in model.named_parameters()]
    exclude, include = (
        [p for p in patterns if any(fnmatchcase(name, p) for name in names)]
        for patterns in (config.exclude, config.include)
    )
    return layout_of(model, output=output, exclude=exclude, include=include)


_LAYOUTS: dict[tuple[object, ...], Layout] = {}
"""The newest layouts, by what they are of."""
_KEPT = 4


def layout_at(config: RunConfig, edits: Edits) -> Layout:
    """The layout of the model with these edits; of the newest few it is kept."""
    key = _key_of(config, edits)
    if key not in _LAYOUTS:
        _keep_layout(key, shaped(config, edits)[1])
    return _LAYOUTS[key]


def _key_of(config: RunConfig, edits: Edits) -> tuple[object, ...]:
    # A notebook may have another task of that name by now.
    task = tasks_of(config.plugin)[config.task]
    return to_toml(with_values(config, {"engine": "inline"})), edits, task.model, task.output


def _keep_layout(key: tuple[object, ...], layout: Layout) -> None:
    _LAYOUTS.pop(key, None)
    while len(_LAYOUTS) >= _KEPT:
        del _LAYOUTS[next(iter(_LAYOUTS))]
    _LAYOUTS[key] = layout


def layout_for(config: RunConfig, model: nn.Module) -> Layout:
    """The layout that a configuration gives a model.

    Raises:
        ValueError: a pattern matches nothing, nothing is left to prune, or the floors keep more
            weights than the sparsity leaves.
    """
    output = output_of(tasks_of(config.plugin)[config.task], model)
    layout = layout_of(model, output=output, exclude=config.exclude, include=config.include)
    _check_reach(config, layout)
    _check_score(config, model, layout)
    _check_target(config, model, layout)
    _check_noise(config, model)
    if config.vocabulary == "used":
        embedding_path(model)  # refused here, before anything starts
    if config.adapters != "none":
        check_adaptable(model, layout, config.targets)
    _keep_layout(_key_of(config, ()), layout)  # so that no question builds a model for it
    return layout


def _check_reach(config: RunConfig, layout: Layout) -> None:
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


def _check_noise(config: RunConfig, model: nn.Module) -> None:
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
    """Prune by magnitude; of single weights without working out which ones.

    Raises:
        ValueError: as `fedprune.selection.select.select`.
    """
    c = config
    if c.unit == "weight":
        check_reachable(weights, c.sparsity or 0.0, rules_of(Wanted(c.sparsity, c.scope), c))
        return
    alive = full_masks(weights, weights)
    scores = {name: w.abs() for name, w in weights.items()}
    chosen(scores, Wanted(c.sparsity, c.scope), c, layout, alive, weights)


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
