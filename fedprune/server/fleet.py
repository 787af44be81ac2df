"""Simulated devices: who is there, who fits, who drops out, and how long a round takes them.

The clock is a model, not a measurement of this machine: bytes are those that were sent, operations
are counted, and both are divided by what a client's class of devices does in a second
(`fedprune.config.profiles`). So it is the same for the same seed, on any machine and engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.config.profiles import DeviceClass, dealt_profiles, profiles_in
from fedprune.learning.options import trains
from fedprune.options.refusal import ConfigError, counted
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Ask, Exchange, Port
from fedprune.randomness import draw_each, generator
from fedprune.server.plan import Plan
from fedprune.server.state import Book, Model, State
from fedprune.tasks.catalog import tasks_of

FORWARDS_OF_A_STEP = 3.0
"""Operations of a training step in forward passes: one forward, and a backward pass of twice that
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Scores that need no backward pass are counted
so too: at most three times too long."""


def fleet_of(config: RunConfig) -> tuple[DeviceClass, ...]:
    """The class of every client; empty where the configuration names none."""
    if not config.profiles:
        return ()
    return dealt_profiles(profiles_in(config.profiles), config.clients, config.seed)


def devices_told(config: RunConfig) -> list[str]:
    """How many clients are of which class, for people."""
    fleet = fleet_of(config)
    if not fleet:
        return []
    counts = {p.name: sum(q.name == p.name for q in fleet) for p in fleet}
    many = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
    return [f"  devices     {many}, with a simulated clock"]


def training_bytes(model: Model, plan: Plan) -> float:
    """What training takes a client: weights, mask, gradients and the optimizer's state.

    Activations are not in it: they depend on the batch and on the machine's libraries.
    """
    c = plan.config
    factors = sum(t.numel() for t in model.adapters.values())
    learn = factors or plan.layout.parameters
    moments = 8 if c.optimizer in ("adam", "adamw") else 4 if c.momentum else 0
    return plan.layout.parameters * 5.0 + learn * (4.0 + (moments if trains(c) else 0.0))


def check_fleet(model: Model, plan: Plan) -> None:
    """Refuse a model that too few clients have the memory for.

    Raises:
        ConfigError: fewer than a round needs.
    """
    if not plan.fleet:
        return
    c, need = plan.config, training_bytes(model, plan)
    fitting = sum(p.memory >= need for p in plan.fleet)
    if fitting < c.min_clients:
        raise ConfigError(
            f"profiles={c.profiles!r}: training takes {need:.3g} bytes without activations, which "
            f"{counted(fitting, 'client')} of {c.clients} have; allowed: more memory, a smaller "
            f"model, or --min-clients up to {fitting}"
        )


def fleet_port(port: Port, state: State, plan: Plan) -> Port:
    """The port in the state's round: without who is away, or for whom the model is too large.

    Measuring asks everyone all the same: it is about the model, not about the devices.
    """
    if not plan.fleet:
        return port
    need, gen = training_bytes(state.model, plan), _chance(plan.config, "away", state.round)
    luck = torch.rand(len(plan.fleet), generator=gen).tolist()
    away = {
        p
        for p, profile in enumerate(plan.fleet)
        if luck[p] >= profile.availability or profile.memory < need
    }
    asking = Exchange(lambda asks: _put(asks, port, plan))
    return replace(port, away=port.away | away, ask=asking)


def _chance(config: RunConfig, what: str, *numbers: int) -> torch.Generator:
    return generator(config.seed, f"fleet {what}", *numbers)


def _put(asks: Sequence[Ask], port: Port, plan: Plan) -> list[Aggregate]:
    """The sums of those who do not drop out; who does is a failure."""
    lost = [_dropped(ask, plan) for ask in asks]
    left = [
        replace(ask, partitions=[p for p in ask.partitions if p not in out])
        for ask, out in zip(asks, lost, strict=True)
    ]
    put = iter(port.put([ask for ask in left if ask.partitions]))
    sums = [next(put) if ask.partitions else Aggregate() for ask in left]
    return [
        replace(total, failures=(*total.failures, *_failures(ask.question, out, plan)))
        for total, ask, out in zip(sums, asks, lost, strict=True)
    ]


def _dropped(ask: Ask, plan: Plan) -> list[int]:
    question = ask.question
    if KINDS[question.kind].asks != "cohort":
        return []
    found = []
    for p in ask.partitions:
        gen = _chance(plan.config, question.kind, question.round, question.ask, p)
        found += draw_each([p], plan.fleet[p].dropout, gen)
    return found


def _failures(question: Question, lost: Sequence[int], plan: Plan) -> list[Failure]:
    return [
        Failure(p, question.kind, "", f"dropped out, as its class {plan.fleet[p].name} does")
        for p in lost
    ]


def clocked(
    book: Book, asks: Sequence[Ask], sums: Sequence[Aggregate], plan: Plan, port: Port
) -> Book:
    """The book after an exchange, whose asks were served side by side, by the simulated clock.

    A phase lasts as long as the slowest client whose answer came. Bytes of a phase are divided
    evenly between its clients. Measuring costs nothing: a deployment need not do it.
    """
    if not plan.fleet:
        return book
    longest, joules = 0.0, 0.0
    labels = port.present()
    for ask, total in zip(asks, sums, strict=True):
        if KINDS[ask.question.kind].counts != "evaluation" and total.answered:
            took = _seconds(ask, total, plan, labels)
            longest = max([longest, *took.values()])
            joules += sum(s * plan.fleet[p].watts for p, s in took.items())
    return replace(book, clock=book.clock + longest, joules=book.joules + joules)


def _seconds(ask: Ask, total: Aggregate, plan: Plan, labels: Mapping[int, int]) -> dict[int, float]:
    """Seconds of each client that answered: receive, compute, send."""
    down = total.bytes_down / len(ask.partitions)
    up = total.bytes_up / len(total.answered)
    each = {}
    for p in total.answered:
        profile = plan.fleet[p]
        work = work_for(ask.question.kind, labels.get(p, 0), plan)
        each[p] = down / profile.down + work / profile.flops + up / profile.up
    return each


def work_for(kind: str, labels: int, plan: Plan) -> float:
    """Floating-point operations of a client with so many training labels for such a question.

    Those of the prunable layers as they are now, zeros included: only what is cut out is saved
    (`fedprune.structure.flops`). 0 where the task has no example to count them on.
    """
    task, c = tasks_of(plan.config.plugin)[plan.config.task], plan.config
    if plan.dummy is None or not plan.positions:
        return 0.0
    per_example = max(1, task.labels(plan.dummy))
    shapes = plan.layout.shapes
    forward = sum(2.0 * shapes[n].numel() * rows for n, rows in plan.positions.items())
    examples = labels / per_example
    if kind == "tune":
        passes = min(float(c.batch_size), examples) * c.local_steps + examples * c.local_epochs
        return FORWARDS_OF_A_STEP * forward * passes
    if kind == "score":
        return FORWARDS_OF_A_STEP * forward * min(examples, float(c.score_examples or examples))
    return forward * examples
