"""Hosts: where partitions are served and their answers added up.

A host holds one resident model and the shards of its partitions. It answers a question for each
of them in order; every answer is cast, encoded, counted, decoded and checked as if it had come
from a device of its own, and what leaves the host is one sum. Partition p of n always belongs to
host p * hosts // n, so the order of every sum is fixed whoever is sampled, fails or works where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from fedprune.answering import answer
from fedprune.choosing import Wanted, chosen
from fedprune.compression.coded import coded_size
from fedprune.compression.wire import Packet
from fedprune.config import RunConfig
from fedprune.forms import Form, check, form_of
from fedprune.learning.training import prepared
from fedprune.messages import Failure, Folded, Question, Refused, as_sum, summed
from fedprune.naming import refuse
from fedprune.packets import decode_answer, decode_question, encode_answer, encode_question
from fedprune.plugins import scores_of, tasks_of
from fedprune.pruning.flops import flops, positions_of
from fedprune.pruning.layout import Layout, layout_of
from fedprune.pruning.selection import select
from fedprune.pruning.units import removable
from fedprune.randomness import seeded
from fedprune.seats import Seat
from fedprune.state import Port
from fedprune.tasks.task import Shard, Task, output_of
from fedprune.tensors import frozen_of, full_masks, state_of

Tick = Callable[[int], None]
"""Told how many more partitions have answered, or failed."""


@dataclass(frozen=True)
class House:
    """What a process that serves partitions keeps: built once, used for every question."""

    config: RunConfig
    task: Task
    model: nn.Module
    layout: Layout
    shards: Mapping[int, Shard]
    device: torch.device
    tuned: nn.Module


def dense_model(config: RunConfig) -> nn.Module:
    """The task's model before round one; the same bits in every process."""
    with seeded(config.seed, "init"):
        return tasks_of(config.plugin)[config.task].model(config)


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
    return layout


def _check_reach(config: RunConfig, layout: Layout) -> None:
    """Refuse a sparsity that floors or units do not allow."""
    sizes = [layout.shapes[name].numel() for name in layout.prunable]
    gone = math.floor((config.sparsity or 0.0) * sum(sizes) + 0.5)
    whole = config.unit in {"sublayer", "layer"}
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
    if score.refuses is not None:
        score.refuses(model, None if task.dummy is None else task.dummy(config))
    for ask in score.asks:  # a statistic that these tensors do not have is refused here
        ask.shapes(layout, layout.prunable, config.unit, config.probes or 0)
    if config.sparsity and score.step is None:
        _check_selection(config, model, layout)


def _check_selection(config: RunConfig, model: nn.Module, layout: Layout) -> None:
    """Refuse patterns, units and floors that this model's tensors do not fit, by trying them."""
    state = state_of(model)
    weights = {name: state[name].cpu() for name in layout.prunable}
    alive = full_masks(weights, weights)
    scores = {name: w.abs() for name, w in weights.items()}
    chosen(scores, Wanted(config.sparsity, config.scope), config, layout, alive, weights)


def _check_target(config: RunConfig, model: nn.Module, layout: Layout) -> None:
    """Refuse a target that even the sparsest masks of single weights miss."""
    c, state = config, state_of(model)
    if (c.target_bytes is None and c.target_flops is None) or c.unit != "weight":
        return
    weights = {name: state[name].abs() for name in layout.prunable}
    least = {n: max(c.floor, math.ceil(c.min_density * w.numel())) for n, w in weights.items()}
    size = sum(w.numel() for w in weights.values())
    most = 1.0 - sum(min(least[n], w.numel()) for n, w in weights.items()) / size
    masks = select(weights, most, floor=c.floor, min_density=c.min_density)
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


def open_house(config: RunConfig, shards: Mapping[int, Shard] | None = None) -> House:
    """Build the model and the shards (all of the task's, unless given).

    Sets this process to one torch thread: with more, results depend on the machine, and workers
    that share its processors slow each other down many times over.
    """
    torch.set_num_threads(1)
    task = tasks_of(config.plugin)[config.task]
    if shards is None:
        shards = dict(enumerate(task.shards(config)))
    model = dense_model(config)
    cuda = torch.cuda.is_available() and config.gpus != 0
    device = torch.device("cuda" if cuda else "cpu")
    layout = layout_for(config, model)
    model = model.to(device)
    return House(config, task, model, layout, shards, device, prepared(model, config))


def serve(
    house: House, packet: Packet, partitions: Sequence[int], tick: Tick | None = None
) -> Folded:
    """The sum of the partitions' answers; a partition that fails is left out and named."""
    question = decode_question(packet, house.layout)
    form = form_of(question, house.config, house.layout)
    total = Folded()
    for partition in partitions:
        total = _served(house, question, form, partition, total)
        if tick:
            tick(1)
    return total


def _served(house: House, question: Question, form: Form, partition: int, before: Folded) -> Folded:
    size = 0
    try:
        packet = released(house, question, partition)
        size = packet.size()
        given = decode_answer(packet, question, form.voters, own=form.own)
        check(given.values, given.weight, given.totals, form, given.statistics)
        return as_sum(given, partition, size, before, singly=form.singly, held=form.own)
    except Exception as error:  # whatever a client's code raises must not stop the others
        failure = failure_of(partition, question.kind, error)
        return summed([before, Folded(failures=(failure,), bytes_up=size)])


def released(house: House, question: Question, partition: int) -> Packet:
    """What one partition sends: its answer, encoded."""
    seat = Seat(
        partition,
        house.shards[partition],
        house.model,
        house.task,
        house.config,
        house.layout,
        house.device,
        house.tuned,
    )
    c = house.config
    own = form_of(question, c, house.layout).own
    return encode_answer(answer(question, seat), question, c.wire, c.score_wire, own=own)


def failure_of(partition: int, phase: str, error: Exception) -> Failure:
    """One line about what went wrong with one partition."""
    where = error.field if isinstance(error, Refused) else ""
    text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
    return Failure(partition, phase, where, " ".join(text.split())[:300])


def grouped(partitions: Sequence[int], config: RunConfig) -> dict[int, list[int]]:
    """Host to the partitions of it that are asked, both ascending."""
    groups: dict[int, list[int]] = {}
    for partition in sorted(partitions):
        groups.setdefault(partition * config.hosts // config.clients, []).append(partition)
    return groups


def bytes_down(packet: Packet, partitions: Sequence[int], known: frozenset[int]) -> int:
    """What a question weighs for those asked: with its mask only for those who lack it."""
    return sum(packet.size(bits=p not in known) for p in partitions)


def inline_port(house: House, tick: Tick | None = None) -> Port:
    """The port that serves every host in this process, one after the other."""

    def ask(question: Question, partitions: Sequence[int]) -> Folded:
        packet = encode_question(question, house.config.wire)
        hosts = grouped(partitions, house.config)
        folded = summed(serve(house, packet, group, tick) for group in hosts.values())
        down = bytes_down(packet, partitions, question.known)
        return replace(folded, bytes_down=down)

    return Port(ask, lambda: labels_of(house))


def labels_of(house: House) -> dict[int, int]:
    """The partitions a house can serve and the labels in their training parts."""
    return {p: house.task.labels(shard.train) for p, shard in sorted(house.shards.items())}
