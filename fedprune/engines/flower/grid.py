"""The port over a Flower grid: one message per host, folded in the order of hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flwr.serverapp import Grid

from fedprune.client.memory import ClientMemory
from fedprune.client.serving import Tick
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.engines.flower.announced import networked
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.open_sums import Put, open_sums
from fedprune.engines.flower.sealed import sealed_sums
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Ask, Exchange, Port


def grid_port(
    grid: Grid,
    config: RunConfig,
    tick: Tick | None = None,
    memory: ClientMemory | None = None,
) -> Port:
    """The port that asks the nodes of a Flower grid.

    A host that does not reply is asked once more, then each of its partitions counts as failed.
    So is a device that lacks the mask or the configuration, this time with both. A sum that is
    malformed or not finite is refused at once.

    Args:
        grid: Flower's grid.
        config: what runs.
        tick: told how many more partitions have answered.
        memory: where what a simulation's clients remember is kept; by default in this process.
    """
    fleet, held = Fleet(grid, config), memory or ClientMemory()
    secure = config.secure != "none"
    put = _one_by_one(sealed_sums(fleet, tick)) if secure else open_sums(fleet, tick, held)

    def with_news(ask: Ask, aggregate: Aggregate) -> Aggregate:
        question, failures = ask.question, tuple(map(fleet.with_node, aggregate.failures))
        if question.kind == "evaluate":
            fleet.gathering = question.round < config.rounds
        # What comes before the first round has no row to be in: the news wait for one.
        failed, said = fleet.news.take() if KINDS[question.kind].weights else ((), ())
        told = aggregate.notices + said
        return replace(aggregate, failures=failures + failed, notices=told)

    def exchange(asks: Sequence[Ask]) -> list[Aggregate]:
        return [with_news(*each) for each in zip(asks, put(asks), strict=True)]

    return Port(
        *(Exchange(exchange), fleet.present),
        rehearsed=True,
        own_data=lambda: networked(grid) or not fleet.simulated(),
        federation=_federation(grid),
    )


def _federation(grid: Grid) -> str:
    """The federation that a run was submitted to; "" for a SuperLink that knows none."""
    named = str(getattr(getattr(grid, "run", None), "federation_id", "") or "")
    return "" if named.startswith("@none/") else named


def _one_by_one(put: Callable[[Question, Sequence[int]], Aggregate]) -> Put:
    return lambda asks: [put(each.question, each.partitions) for each in asks]
