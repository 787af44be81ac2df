"""Pruning on one machine: the clients' and the server's half of a score, without either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedprune.config import RunConfig
from fedprune.library.forms import part_of
from fedprune.library.keywords import told_in_keywords
from fedprune.library.own import own_task
from fedprune.options.refusal import ConfigError, named
from fedprune.protocol.choice import Wanted, chosen_by, evidence_about
from fedprune.protocol.models import dense_model, layout_for
from fedprune.randomness import derive
from fedprune.scores.catalog import scores_of
from fedprune.scores.input_sums import unseen
from fedprune.scores.score import Evidence, Probe, Score
from fedprune.structure.layers import layers_of
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import OWN, known_as_own
from fedprune.tasks.task import Part, Task, batches, examples
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, Tensors, copied, count_kept, full_masks, masked

STAND_IN: Part = {"inputs": torch.zeros(3, 1), "labels": torch.zeros(3)}
"""In place of data, for scores that look at none: only its length is ever read."""


@dataclass(frozen=True)
class Pruned:
    """A pruned copy of a model."""

    # the copy, in eval mode; removed weights are exactly 0.0. `fedprune.keep_zeros` keeps them so
    # while it is trained further. With ``score="flap"`` layers that lost inputs have biases for
    # them.
    model: nn.Module
    masks: Masks  # True = kept, by parameter name
    sparsity: float  # part of the prunable weights that is gone

    def __repr__(self) -> str:
        return f"Pruned({type(self.model).__name__}, sparsity {self.sparsity:.4g})"


@told_in_keywords()
def prune(
    model: nn.Module,
    sparsity: float,
    *,
    score: str = "magnitude",
    data: Any = None,
    loss: Any = None,
    output: tuple[str, ...] = (),
    batch_size: int = 32,
    **options: Any,
) -> Pruned:
    """Prune once, on one machine: what a run with one client does before anybody trains.

    Args:
        model: is copied, never changed.
        sparsity: part of the prunable weights that goes.
        score: a name in `fedprune.SCORES`.
        data: what the score looks at, a data set as `fedprune.own_task` reads it; all of its
            examples. None: for scores that look at none.
        loss: as in `own_task`.
        output: as in `own_task`.
        batch_size: examples at a time. Of the scores only `second_moment_per_batch` depends on it.
        options: `scope`, `unit`, `unit_shape`, `pool`, `floor`, `exclude`, `include`,
            `min_density`, `max_density`, `probes`, `seed`, as in `fedprune.RunConfig`.

    Raises:
        ConfigError: an option that is not one of these, a value that does not fit, or a score that
            asks for data where there is none.
    """
    _check_options(options)
    if sparsity is None or sparsity == 0:
        raise ConfigError(f"sparsity={sparsity}: prunes nothing; allowed: above 0 and below 1")
    part = STAND_IN if data is None else part_of(data)
    task = own_task(model, [part], loss=loss, output=output)
    fixed = {"clients": 1, "rounds": 1, "warmup": 0, "schedule": "one-shot", "local_steps": 0}
    with known_as_own(task):
        config = RunConfig(task=OWN, sparsity=sparsity, score=score, **fixed, **options)
        found = scores_of("")[config.score]
        _check_data(found, score, data)
        copy = dense_model(config).eval()
        layout = layout_for(config, copy)
        evidence = _evidence(copy, layout, found, config, (task, part, batch_size))
        masks, weights = _decided(found, evidence, config, layout)
        lost = {} if found.makes_up is None else found.makes_up(evidence, masks)
    load_into(copy, state_of(copy) | weights)
    _add_biases(copy, lost)
    return Pruned(copy, masks, (layout.whole - count_kept(masks)) / layout.whole)


_OPTIONS = (
    *("scope", "unit", "unit_shape", "pool", "floor", "exclude", "include"),
    *("min_density", "max_density", "probes", "seed"),
)


_NAMED = ("score", "data", "loss", "output", "batch_size")


def _check_data(score: Score, name: str, data: Any) -> None:
    if score.asks and data is None:
        raise ConfigError(
            f"data=None: score={name!r} looks at examples; allowed: data, or a score that "
            "looks at none, such as 'magnitude'"
        )


def _check_options(options: Sequence[str] | dict[str, Any]) -> None:
    for name in options:
        named(("option", name), (*_NAMED, *_OPTIONS), "option of prune")


def _evidence(
    model: nn.Module, layout: Layout, score: Score, config: RunConfig, data: tuple[Task, Part, int]
) -> Evidence:
    """What the score sums over all examples, one ask after the other."""
    task, part, size = data
    weights = copied(state_of(model))
    held = (weights, full_masks(weights, layout.prunable), 1)
    names, count = layout.prunable, float(task.labels(part))

    dummy = None if task.dummy is None else task.dummy(config)

    def about(sums: Tensors, given: Tensors) -> Evidence:
        more: dict[str, Any] = {"sums": sums, "count": count, "given": given, "model": model}
        more["dummy"] = dummy
        return evidence_about(held, names, config, layout, **more)

    evidence = about({}, {})
    for ask in score.asks:
        given = {} if ask.given is None else ask.given(evidence)
        load_into(model, weights)
        probe = Probe(
            model,
            layout,
            names,
            list(batches(part, size)),
            task.loss,
            held[1],
            given,
            config.unit,
            config.probes or 0,
            derive(config.seed, "score", 1),
        )
        evidence = about({n: s.double() for n, s in copied(ask.collect(probe)).items()}, given)
    if lost := unseen(evidence.sums):
        raise ConfigError(
            f"score={config.score!r}: none of {examples(part)} examples went through the layer of "
            f"{lost[0]}; allowed: exclude=({lost[0]!r},), other data, or another score"
        )
    return evidence


def _decided(
    score: Score, evidence: Evidence, config: RunConfig, layout: Layout
) -> tuple[Masks, Tensors]:
    assert config.sparsity is not None  # `prune` was given one
    if score.step is not None:
        shares = dict.fromkeys(evidence.weights, config.sparsity)
        shape = config.unit_shape if config.unit == "n:m" else None
        return score.step(evidence, shares, shape)
    masks = chosen_by(score, evidence, Wanted(config.sparsity, config.scope), config, layout)
    return masks, masked(evidence.weights, masks)


@torch.no_grad()
def _add_biases(model: nn.Module, lost: Tensors) -> None:
    """Add (out,) by the weight's name to biases, in place; a layer without a bias gets one."""
    found: Any = layers_of(model, list(lost))
    for name, layers in found.items():
        for layer in layers:
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(lost[name])))
            layer.bias += lost[name].to(layer.bias.dtype)
