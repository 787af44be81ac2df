"""Simulated devices: who is there, who fits, who drops out, and how long a round takes them.

The clock is a model, not a measurement of this machine: bytes are those that were sent, operations
are counted, and both are divided by what a client's class of devices does in a second
(`fedprune.config.profiles`). So it is the same for the same seed, on any machine and engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.config.profiles import DeviceClass, dealt_profiles, profiles_in
from fedprune.learning.options import trains
from fedprune.options.refusal import ConfigError, counted
from fedprune.protocol.aggregate import Aggregate, PhaseCost
from fedprune.protocol.failures import Failure
from fedprune.protocol.port import Ask, Exchange, Port
from fedprune.randomness import draw_each, generator
from fedprune.server.plan import Plan
from fedprune.server.state import Book, Model, State
from fedprune.tasks.catalog import tasks_of

FORWARDS_OF_A_STEP = 3.0
"""Operations of a training step in forward passes: one forward, and a backward pass of twice that
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Scores are counted so too: those without a
backward pass up to three times too long, those with a pass for every probe or unit (perturbation,
ablation) too short."""


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
        fewer = f", or --min-clients up to {fitting}" if fitting else ""
        raise ConfigError(
            f"profiles={c.profiles!r}: training takes {need:.3g} bytes without activations, which "
            f"{counted(fitting, 'client')} of {c.clients} have; allowed: more memory or a smaller "
            f"model{fewer}"
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
    there = _There(plan, dict(state.book.paid), port.present)
    asking = Exchange(lambda asks: _put(asks, port, there))
    return replace(port, away=port.away | away, ask=asking)


def _chance(config: RunConfig, what: str, *numbers: int) -> torch.Generator:
    return generator(config.seed, f"fleet {what}", *numbers)


@dataclass(frozen=True)
class _There:
    """What is known of the devices in a round.

    Attributes:
        plan: with the class of each.
        paid: bytes down and up of a client, by kind of question, in the newest such phase of an
            earlier round.
        labels: training labels of those who are there, by partition.
    """

    plan: Plan
    paid: Mapping[str, tuple[float, float]]
    labels: Callable[[], Mapping[int, int]]


def _put(asks: Sequence[Ask], port: Port, there: _There) -> list[Aggregate]:
    """The sums of those who answer in time, with what it cost; who does not is a failure."""
    labels = there.labels()
    lost = [_lost(ask, there, labels) for ask in asks]
    left = [
        replace(ask, partitions=[p for p in ask.partitions if p not in out])
        for ask, out in zip(asks, lost, strict=True)
    ]
    put = iter(port.put([ask for ask in left if ask.partitions]))
    sums = [next(put) if ask.partitions else Aggregate() for ask in left]
    return [
        replace(
            total,
            failures=(*total.failures, *out.values()),
            cost=_cost(ask, total, there, labels, waited=bool(out)),
        )
        for total, ask, out in zip(sums, left, lost, strict=True)
    ]


def _lost(ask: Ask, there: _There, labels: Mapping[int, int]) -> dict[int, Failure]:
    """Who drops out, and who would answer after the deadline, each with the reason."""
    question, plan, found = ask.question, there.plan, dict[int, Failure]()
    if KINDS[question.kind].asks != "cohort":
        return found
    sizes = there.paid.get(question.kind, plan.dense_packet)
    for p in ask.partitions:
        name, most = plan.fleet[p].name, plan.config.deadline
        took = _seconds(p, question.kind, sizes, plan, labels)
        gen = _chance(plan.config, question.kind, question.round, question.ask, p)
        why = f"dropped out, as its class {name} does"
        if not draw_each([p], plan.fleet[p].dropout, gen):
            late = isinstance(most, float) and took > most
            why = f"late: its class {name} would take {took:.3g} s" if late else ""
        if why:
            found[p] = Failure(p, question.kind, "", why)
    return found


def _cost(
    ask: Ask, total: Aggregate, there: _There, labels: Mapping[int, int], *, waited: bool
) -> PhaseCost | None:
    """What a phase took: as long as its slowest answer, or the deadline if somebody missed it.

    Bytes are divided evenly between its clients. Measuring costs nothing: a deployment need not do
    it.
    """
    plan, kind = there.plan, ask.question.kind
    most = plan.config.deadline
    if KINDS[kind].counts == "evaluation":
        return None
    sizes = (
        total.bytes_down / max(1, len(ask.partitions)),
        total.bytes_up / max(1, len(total.answered)),
    )
    took = {p: _seconds(p, kind, sizes, plan, labels) for p in total.answered}
    joules = sum(s * plan.fleet[p].watts for p, s in took.items())
    longest = most if waited and isinstance(most, float) else max(took.values(), default=0.0)
    return PhaseCost(longest, joules, *sizes)


def _seconds(
    p: int, kind: str, sizes: tuple[float, float], plan: Plan, labels: Mapping[int, int]
) -> float:
    """Seconds of a client: to receive, compute, and send."""
    its = plan.fleet[p]
    return (
        sizes[0] / its.down + work_for(kind, labels.get(p, 0), plan) / its.flops + sizes[1] / its.up
    )


def clocked(book: Book, asks: Sequence[Ask], sums: Sequence[Aggregate]) -> Book:
    """The book after an exchange, whose asks were served side by side, by the simulated clock."""
    costs = {a.question.kind: s.cost for a, s in zip(asks, sums, strict=True) if s.cost is not None}
    seconds = [s.cost.seconds for s in sums if s.cost is not None]
    if not seconds:
        return book
    joules = sum(s.cost.joules for s in sums if s.cost is not None)
    paid = {kind: (cost.down, cost.up) for kind, cost in costs.items() if cost.down}
    return replace(
        book,
        clock=book.clock + max(seconds),
        joules=book.joules + joules,
        paid={**book.paid, **paid},
    )


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
