"""Exact effect of removing one unit at a time: L(without it) - L(with all of it), on all the data.

A batch goes through once for many units: it is repeated, and in copy u what unit u's weights add
to the outputs of their layers is taken off. That needs the loss of every example (`Loss.each`) and
layers whose first dimension is the batch; else the unit's weights are set to 0 and everything goes
through again. Both give the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.scores.score import Evidence, Probe, Shapes, Statistic
from fedprune.selection.units import unit_count, unit_labels
from fedprune.structure.layers import (
    as_output,
    groups,
    input_rows,
    layers_of,
    output_rows,
    parameters_of,
    watching,
)
from fedprune.structure.layout import Layout, as_rows
from fedprune.tasks.task import Part, examples
from fedprune.tensors.named import Tensors

_CHANGES = "ablation"  # The summand of larger units: Σ L(without) - L(with), for every unit

_AT_ONCE = 2**15
"""How many numbers of a batch's largest tensor go through at once, all copies together."""

Labels = dict[str, Tensor]
"""For every tensor the number of the unit that each weight belongs to, or -1."""


@dataclass(frozen=True)
class Patches:
    """Parts of one weight that belong to units, all of one shape, in the (out, columns) view."""

    copies: Tensor  # (patches,), the copy of the batch that a patch is taken off
    rows: Tensor  # (patches, height)
    columns: Tensor  # (patches, width)
    weights: Tensor  # (patches, height, width), 0 where a place inside does not belong to the unit


class _NotBatched(Exception):
    """Units have to be removed one at a time."""


def _shapes(layout: Layout, names: Sequence[str], unit: str, _probes: int) -> Shapes:
    if unit == "weight":
        return {name: layout.shapes[name] for name in names}
    return {_CHANGES: torch.Size([unit_count(_labels(layout, names, unit))])}


def _labels(layout: Layout, names: Sequence[str], unit: str) -> Labels:
    """Every weight its unit; where units are single weights they are counted through."""
    if unit == "weight":
        ends = torch.tensor([layout.shapes[n].numel() for n in names]).cumsum(0).tolist()
        return {
            n: torch.arange(end - layout.shapes[n].numel(), end).reshape(layout.shapes[n])
            for n, end in zip(names, ends, strict=True)
        }
    labels = unit_labels(layout, unit)
    return {name: labels[name] for name in names}


@torch.no_grad()
def _collect(probe: Probe) -> Tensors:
    labels = _labels(probe.layout, probe.prunable, probe.unit)
    changes = torch.zeros(unit_count(labels), dtype=torch.float64)
    alive = _alive(labels, probe)
    try:
        changes[alive] = _batched(probe, labels, alive)
    except _NotBatched:
        changes[alive] = _one_by_one(probe, labels, alive)
    if probe.unit == "weight":
        return {name: changes[label] for name, label in labels.items()}
    return {_CHANGES: changes}


def _alive(labels: Labels, probe: Probe) -> Tensor:
    """Numbers of the units of which anything is left."""
    there = [label[probe.masks[name].to(label.device)] for name, label in labels.items()]
    found: Tensor = torch.cat(there).unique()
    return found[found >= 0]


def _one_by_one(probe: Probe, labels: Labels, units: Tensor) -> Tensor:
    parameters = parameters_of(probe.model, list(labels))
    whole, changes = probe.total_loss(), torch.zeros(len(units), dtype=torch.float64)
    sent = {name: p.clone() for name, p in parameters.items()}
    try:
        for i, unit in enumerate(units.tolist()):
            hit = [name for name, label in labels.items() if bool((label == unit).any())]
            for name in hit:
                parameters[name].masked_fill_((labels[name] == unit).to(sent[name].device), 0.0)
            changes[i] = probe.total_loss() - whole
            for name in hit:
                parameters[name].copy_(sent[name])
    finally:
        for name, p in parameters.items():
            p.copy_(sent[name])
    return changes


def _batched(probe: Probe, labels: Labels, units: Tensor) -> Tensor:
    layers = layers_of(probe.model, list(labels))
    if probe.layout.structure.mixtures:  # rows of experts are tokens, in no order of examples
        raise _NotBatched
    if any(not found or any(groups(m) > 1 for m in found) for found in layers.values()):
        raise _NotBatched
    whole = [_each(probe, batch).sum().item() for batch in probe.batches]
    changes = torch.zeros(len(units), dtype=torch.float64)
    largest, done = max(t.numel() for batch in probe.batches for t in batch.values()), 0
    for chunk in units.split(max(1, _AT_ONCE // largest)):
        patches = {n: list(_patches(probe, n, label, chunk)) for n, label in labels.items()}
        for batch, before in zip(probe.batches, whole, strict=True):
            after = _without(probe, batch, len(chunk), layers, patches)
            changes[done : done + len(chunk)] += after - before
        done += len(chunk)
    return changes


def _each(probe: Probe, batch: Part) -> Tensor:
    each = probe.loss(probe.model, batch).each
    if each is None:
        raise _NotBatched
    return each.double().cpu()


def _without(
    probe: Probe,
    batch: Part,
    copies: int,
    layers: dict[str, list[nn.Module]],
    patches: dict[str, list[Patches]],
) -> Tensor:
    """The batch's summed loss without each of the units, (copies,)."""
    rows = copies * examples(batch)

    def seen(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
        if not patches[name]:
            return None
        if x.shape[0] % rows or y.shape[0] != x.shape[0]:
            raise _NotBatched
        inputs = input_rows(layer, x)
        inputs = inputs.reshape(copies, -1, inputs.shape[-1])
        outputs = output_rows(layer, y)
        shaped = outputs.reshape(copies, -1, outputs.shape[-1]).clone()
        for patch in patches[name]:
            _take_off(shaped, inputs, patch)
        return as_output(layer, shaped.reshape(outputs.shape), y.shape)

    repeated = {n: t.repeat(copies, *[1] * (t.dim() - 1)) for n, t in batch.items()}
    with watching(layers, seen):
        each = _each(probe, repeated)
    summed: Tensor = each.reshape(copies, -1).sum(1)
    return summed


def _take_off(outputs: Tensor, inputs: Tensor, patch: Patches) -> None:
    """What the patches add to the outputs of their copies goes, in place.

    `outputs`: (copies, rows of data, out). `inputs`: (copies, rows of data, columns). `patch`: some
    patches; no two of one copy share a row of the weight.
    """
    x = inputs[patch.copies]
    columns = patch.columns[:, None, :].expand(-1, x.shape[1], -1)
    added = x.gather(2, columns) @ patch.weights.transpose(1, 2)
    copies = patch.copies[:, None].expand_as(patch.rows)
    # Indexed like this, (patches, height, rows of data).
    outputs[copies, :, patch.rows] -= added.transpose(1, 2)


def _patches(probe: Probe, name: str, labels: Tensor, units: Tensor) -> Iterator[Patches]:
    """The weights of the units in one tensor, those of one shape together."""
    weight = as_rows(probe.layout, name, probe.model.get_parameter(name).detach())
    owner = as_rows(probe.layout, name, labels).to(weight.device)
    by_shape: dict[tuple[int, int], list[tuple[int, Tensor, Tensor, Tensor]]] = {}
    inside = ((owner >= int(units[0])) & (owner <= int(units[-1]))).nonzero()
    numbers = owner[inside[:, 0], inside[:, 1]]
    for copy, unit in enumerate(units.tolist()):
        places = inside[numbers == unit]
        if len(places):
            rows, columns = places[:, 0].unique(), places[:, 1].unique()
            corner = (rows[:, None], columns[None, :])
            own = weight[corner] * (owner[corner] == unit)
            by_shape.setdefault((len(rows), len(columns)), []).append((copy, rows, columns, own))
    for found in by_shape.values():
        copies, rows_, columns_, own_ = zip(*found, strict=True)
        where = torch.tensor(copies, device=weight.device)
        yield Patches(where, torch.stack(rows_), torch.stack(columns_), torch.stack(own_))


ASK_ABLATION = Statistic(
    _collect,
    _shapes,
    passes="1 forward a unit, many in one batch",
    forwards=lambda units: 1.0 + units,
)


def ablation(evidence: Evidence) -> Tensors:
    """|L(without) - L(with)| of the mean loss; every weight has the score of its unit."""
    if evidence.unit == "weight":
        return {name: (s / evidence.count).abs() for name, s in evidence.sums.items()}
    changes = (evidence.sums[_CHANGES] / evidence.count).abs()
    labels = _labels(evidence.layout, list(evidence.weights), evidence.unit)
    scores = torch.cat([changes, changes.new_zeros(1)])  # the last is that of -1: in no unit
    return {name: scores[label.long()] for name, label in labels.items()}
