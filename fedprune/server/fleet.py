"""Simulated devices: who is there, who fits, who drops out, and how long a round takes them.

The clock is a model, not a measurement of this machine: bytes are those that were sent, operations
are counted, and both are divided by what a client's class of devices does in a second
(`fedprune.config.profiles`). So it is the same for the same seed, on any machine and engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fedprune.config import RunConfig
from fedprune.config.cohort import first_counting
from fedprune.config.kinds import KINDS
from fedprune.config.profiles import DeviceClass, dealt_profiles, profiles_in
from fedprune.protocol.aggregate import Aggregate, PhaseCost
from fedprune.protocol.failures import Failure
from fedprune.protocol.port import Ask, Exchange, Port
from fedprune.protocol.running_sum import summed
from fedprune.randomness import draw_each, generator
from fedprune.server.plan import Plan
from fedprune.server.state import Book, State
from fedprune.server.work import bytes_needed, client_seconds
from fedprune.tasks.options import Data


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


def fleet_port(port: Port, state: State, plan: Plan) -> Port:
    """The port in the state's round: without who is away, or for whom the model is too large.

    Measuring asks everyone all the same: it is about the model, not about the devices.
    """
    if not plan.fleet:
        return port
    gen = _chance(plan.config, "away", state.round)
    luck = torch.rand(len(plan.fleet), generator=gen).tolist()
    away = {
        p
        for p, profile in enumerate(plan.fleet)
        if luck[p] >= profile.availability or profile.memory < bytes_needed(state.model, plan, p)
    }
    stages, paid = Counter[tuple[str, int]](), dict(state.book.paid)
    asking = Exchange(lambda asks: _put(asks, port, _There(plan, paid, port.present(), stages)))
    return replace(port, away=port.away | away, ask=asking)


def _chance(config: Data, what: str, *numbers: int) -> torch.Generator:
    return generator(config.seed, f"fleet {what}", *numbers)


@dataclass(frozen=True)
class _There:
    """What is known of the devices in a round.

    `paid` are bytes down and up of a client, by kind of question, in the newest such phase of an
    earlier round; `labels` training labels of those who are there; `stages` how often each kind of
    question was put in the round.
    """

    plan: Plan
    paid: Mapping[str, tuple[float, float]]
    labels: Mapping[int, int]
    stages: Counter[tuple[str, int]]


@dataclass(frozen=True)
class _Drawn:
    """Who answers a question: who drops out or is late, with the failure, or is not waited for.

    These, `spare`, are the slowest of those who were asked beyond the cohort.
    """

    lost: Mapping[int, Failure]
    spare: Collection[int] = ()


def _put(asks: Sequence[Ask], port: Port, there: _There) -> list[Aggregate]:
    """The sums of those who answer in time, with what it cost; who does not is a failure."""
    drawn = _without_spare(asks, [_Drawn(_lost(ask, there)) for ask in asks], there)
    for key in {(ask.question.kind, ask.question.ask) for ask in asks}:
        there.stages[key] += 1
    left = [
        replace(ask, partitions=[p for p in ask.partitions if p not in {*out.lost, *out.spare}])
        for ask, out in zip(asks, drawn, strict=True)
    ]
    parted = [_by_steps(ask, there.plan) for ask in left]
    put = iter(port.put([ask for those in parted for ask in those]))
    found = [[next(put) for _ in those] for those in parted]
    sums = [these[0] if len(these) == 1 else summed(these) for these in found]
    return [_costly(*each, there) for each in zip(left, sums, drawn, strict=True)]


def _by_steps(ask: Ask, plan: Plan) -> list[Ask]:
    """An ask for each part of their steps that its clients take, the larger first."""
    if not plan.steps or ask.question.kind != "tune":
        return [ask] if ask.partitions else []
    out = []
    for part in sorted({plan.steps[p] for p in ask.partitions}, reverse=True):
        regime = replace(ask.question.regime, steps=part)
        those = [p for p in ask.partitions if plan.steps[p] == part]
        out.append(Ask(replace(ask.question, regime=regime), those))
    return out


def _lost(ask: Ask, there: _There) -> dict[int, Failure]:
    """Who drops out, and who would answer after the deadline, each with the reason.

    Chance decides anew in every stage of a round: each score, each step of it, and training.
    """
    question, plan, found = ask.question, there.plan, dict[int, Failure]()
    if KINDS[question.kind].asks != "cohort":
        return found
    stage = there.stages[question.kind, question.ask]
    for p in ask.partitions:
        name, most = plan.fleet[p].name, plan.config.deadline
        took = _expected(p, ask, there)
        numbers = (question.round, question.ask, p, *([stage] if stage else []))
        gen = _chance(plan.config, question.kind, *numbers)
        why = f"dropped out, as its class {name} does"
        if not draw_each([p], plan.fleet[p].dropout, gen):
            late = isinstance(most, float) and took > most
            why = f"late: its class {name} would take {took:.3g} s" if late else ""
        if why:
            found[p] = Failure(p, question.kind, "", why)
    return found


def _without_spare(asks: Sequence[Ask], drawn: Sequence[_Drawn], there: _There) -> list[_Drawn]:
    """The same, with the slowest of an exchange as spare, where more answer than count."""
    most = first_counting(there.plan.config, [ask.question.kind for ask in asks])
    cohort = [i for i, ask in enumerate(asks) if KINDS[ask.question.kind].asks == "cohort"]
    if most is None:
        return list(drawn)
    answers = sorted(
        (_expected(p, asks[i], there), p, i)
        for i in cohort
        for p in asks[i].partitions
        if p not in drawn[i].lost
    )
    spare = answers[most:]
    return [
        replace(out, spare=sorted(p for _, p, i in spare if i == n)) for n, out in enumerate(drawn)
    ]


def _expected(p: int, ask: Ask, there: _There) -> float:
    """Seconds that a client would take, by the bytes of the newest such phase."""
    sizes = there.paid.get(ask.question.kind, there.plan.dense_packet)
    return client_seconds(p, ask.question, sizes, there.plan, there.labels.get(p, 0))


def _costly(ask: Ask, total: Aggregate, out: _Drawn, there: _There) -> Aggregate:
    """A sum with what it cost, with who failed, and with what is said of who was not waited for."""
    total = replace(total, failures=(*total.failures, *out.lost.values()))
    cost = _cost(ask, total, there, waited=bool(out.lost))
    if cost is None or not out.spare:
        return replace(total, cost=cost)
    spent = sum(
        min(cost.seconds, _expected(p, ask, there)) * there.plan.fleet[p].watts for p in out.spare
    )
    return replace(
        total,
        cost=replace(cost, joules=cost.joules + spent),
        bytes_down=total.bytes_down + round(cost.down * len(out.spare)),
        notices=total.notices + spare_told(ask.question.kind, out.spare),
    )


def spare_told(kind: str, spare: Collection[int]) -> tuple[str, ...]:
    """What a round's row says of clients that were asked and not needed."""
    who = ", ".join(map(str, sorted(spare)))
    return (f"{kind}: enough others were faster than client {who}",) if spare else ()


def _cost(ask: Ask, total: Aggregate, there: _There, *, waited: bool) -> PhaseCost | None:
    """What a phase took: as long as its slowest answer, or the deadline if somebody missed it.

    Bytes are divided evenly between its clients, and so are the labels that models are compared
    on. Measuring costs nothing: a deployment need not do it.
    """
    plan, question = there.plan, ask.question
    labels: Mapping[int, float] = there.labels
    most, many = plan.config.deadline, max(1, len(total.answered))
    if KINDS[question.kind].counts == "evaluation":
        return None
    sizes = (total.bytes_down / max(1, len(ask.partitions)), total.bytes_up / many)
    if question.kind == "compare":
        labels = {p: total.totals.get("count", 0.0) / many for p in total.answered}
    took = {p: client_seconds(p, question, sizes, plan, labels.get(p, 0)) for p in total.answered}
    joules = sum(s * plan.fleet[p].watts for p, s in took.items())
    longest = most if waited and isinstance(most, float) else max(took.values(), default=0.0)
    return PhaseCost(longest, joules, *sizes)


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
