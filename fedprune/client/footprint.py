"""What one client takes, of memory, of a card and of time: measured before round one.

The client with the most examples does on a copy of the model what it will be asked: where clients
train, a step with a whole batch; where the run prunes, the score, on one; where nobody
trains, that and measuring alone. Nothing is kept, and nothing leaves the process.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedprune.client.adapted import trial_adapters
from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.client.host import Host
from fedprune.client.trial_answers import try_score
from fedprune.client.trial_client import TrialClient
from fedprune.config import with_values
from fedprune.learning.options import trains
from fedprune.protocol.messages import Question
from fedprune.protocol.parts_asked import asked_at_once
from fedprune.randomness import seeded
from fedprune.runtime.guarding import guarded
from fedprune.runtime.process import put_back, resident
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.streaming.blocks import is_streamed
from fedprune.tasks.later import rows_counted
from fedprune.tasks.task import Shard, examples
from fedprune.tensors.models import state_of
from fedprune.tensors.named import copied, full_masks, on_cpu

SUMS = 3  # Copies of a sum in float64 that a worker has at once: its own, encoded, and with Ray

CONTEXT = 0.6 * 2**30
"""Bytes of a card that a process takes before it has anything there: CUDA's own."""

PATIENCE = 60.0  # Seconds that the trial may take; what takes longer is not known


@dataclass(frozen=True)
class Footprint:
    """What a process that serves clients takes."""

    memory: float = 0.0  # bytes resident at its peak; 0: not known
    card: float = 0.0  # bytes of a card at its peak; 0: none is used
    card_room: float = 0.0  # bytes that a card here has free
    # seconds of a client that takes one step, of the processor where there is no card; 0: not known
    turn: float = 0.0
    # seconds of the step; where nobody trains, of scoring and measuring as many examples
    step: float = 0.0


def footprint_of(host: Host) -> Footprint:
    """What a worker would take that serves what this host does.

    Of a step that raises, which its client will answer for, time is not known. Memory is that of
    Linux; elsewhere it is not known.
    """
    counts = rows_counted(host.shards)
    partition = max(host.shards, key=lambda p: counts[p].train)
    cuda = host.device.type == "cuda"
    with put_back(), seeded(host.config.seed, "footprint"):
        before = resident("VmRSS")
        _forget_peak()
        if cuda:
            torch.cuda.reset_peak_memory_stats(host.device)
        try:
            turn, step = guarded(lambda: _timed(host, partition), PATIENCE)
        except Exception:  # such as a batch that its loss cannot take: the client's affair
            turn, step = 0.0, 0.0
        peak = max(resident("VmHWM"), before)
        card = torch.cuda.max_memory_allocated(host.device) + CONTEXT if cuda else 0.0
        room = float(torch.cuda.mem_get_info(host.device)[0]) if cuda else 0.0
    sums = SUMS * 8 * _summed(host)
    return Footprint(float(peak + sums) if peak else 0.0, float(card), room, turn, step)


def _summed(host: Host) -> int:
    """How many numbers a sum of answers holds at most, roughly: as many as the model.

    Where nobody trains no more than the statistics of the score, or scores of the prunable weights.
    """
    c, layout = host.config, host.layout
    if trains(c):
        return layout.parameters
    score, combine = scores_of(c.plugin)[c.score], combines_of(c.plugin)[c.combine]
    if combine.valued and not combine.pooled:
        return layout.whole
    some = asked_at_once(score, host.model, c, layout)
    shapes = (
        ask.shapes(layout, names or layout.prunable, c.unit, c.probes or 0).values()
        for ask in score.asks
        for names in some
    )
    return max((sum(s.numel() for s in each) for each in shapes), default=0)


def _timed(host: Host, partition: int) -> tuple[float, float]:
    """Seconds of a client with one step, and of a step."""
    c = host.config
    if trains(c):
        found = _trained(host, partition)
        _scored(host, partition)  # for what it takes of memory
        return found
    seconds, of = _scored(host, partition)
    step = seconds / of * c.batch_size * c.accumulate
    return step, step


def _trained(host: Host, partition: int) -> tuple[float, float]:
    """The same of training: with three steps, if that is soon done."""
    turn = _seconds(host, partition, 1)
    if turn > 1.0:
        return turn, turn
    turn = min(turn, _seconds(host, partition, 1))  # without what only the first one does
    more = _seconds(host, partition, 3)
    return turn, min(turn, max((more - turn) / 2, turn / 100))


def _seconds(host: Host, partition: int, steps: int) -> float:
    changes = {"local_steps": steps, "local_epochs": 0, "compile": False, "distil": 0.0}
    client = _client(host, partition, host.shards[partition], changes)
    weights = copied(state_of(client.model))
    masks = full_masks(weights, host.layout.prunable)
    beside, masks = trial_adapters(client, weights, masks)
    about = {"weights": weights, "masks": masks, "lr": host.config.lr, **beside}
    question = Question("tune", 1, **about)
    now = _clock(host)
    began = now()
    answer(question, client)
    return now() - began


def _scored(host: Host, partition: int) -> tuple[float, int]:
    """Seconds of the score's asks and of measuring, and the examples that it took."""
    shard, most = host.shards[partition], host.config.score_batch
    parts = (shard.train, shard.validation, shard.test)
    few = Shard(*({name: t[:most] for name, t in part.items()} for part in parts))
    trial = TrialClient(_client(host, partition, few, {}), on_cpu(state_of(host.model)), {})
    now = _clock(host)
    began = now()
    try_score(trial)
    answer(trial.question("evaluate", part="validation"), trial.client)
    return now() - began, examples(few.train)


def _clock(host: Host) -> Callable[[], float]:
    """Seconds of the processor: other work does not lengthen them. With a card, of the clock."""
    return time.perf_counter if host.device.type == "cuda" else time.process_time


def _client(host: Host, partition: int, shard: Shard, changes: Mapping[str, Any]) -> ClientContext:
    config = with_values(host.config, changes) if changes else host.config
    model = host.model if is_streamed(host.model) else copy.deepcopy(host.model)
    where = (partition, shard, model, host.task, config, host.layout, host.device, model)
    return ClientContext(*where, train=host.train)


def _forget_peak() -> None:
    """Let the peak be what is resident now (clear_refs in proc(5)); else it is that of before."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
