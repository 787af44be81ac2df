"""The port: how a question is put to clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question


@dataclass(frozen=True)
class Ask:
    """One question, about some model, to some partitions; an ask of one can have a mask of its own.

    Who has what of it already is filled in when it is put.
    """

    question: Question
    partitions: Sequence[int]


@dataclass(frozen=True)
class Exchange:
    """A port's `ask` that can put several asks side by side: one sum for each, in their order."""

    put: Callable[[Sequence[Ask]], list[Aggregate]]

    def __call__(self, question: Question, partitions: Sequence[int]) -> Aggregate:
        """The sum of one ask."""
        return self.put([Ask(question, partitions)])[0]


@dataclass(frozen=True)
class Port:
    """What the loop knows of the world.

    Attributes:
        ask: puts a question to partitions, gives back the folded answers; an `Exchange`, if it can
            put several at once.
        present: the partitions that can be asked now, ascending, and their training labels.
        away: partitions that no cohort is drawn from now; they measure all the same.
        panel: partitions that only measure, and no others do; none: everyone trains and measures.
        rehearsed: who serves the partitions tries task, model and data together before it takes
            part (`fedprune.client.rehearsal`).
        own_data: whether clients are devices with data of their own, as far as is known by now.
        federation: Flower's id of the federation that they are in, where there is one.
        model: the resident model of who serves them, where that is this process; its values are
            overwritten by whoever computes with it.
        data: digest of all shards (`fedprune.tasks.shards.data_digest`), "" where they are not
        here.
    """

    ask: Callable[[Question, Sequence[int]], Aggregate]
    present: Callable[[], Mapping[int, int]]
    panel: frozenset[int] = frozenset()
    away: frozenset[int] = frozenset()
    rehearsed: bool = False
    own_data: Callable[[], bool] = lambda: False
    federation: str = ""
    data: Callable[[], str] = lambda: ""
    model: nn.Module | None = None

    def put(self, asks: Sequence[Ask]) -> list[Aggregate]:
        """One sum for each ask, in their order: side by side if the port can, else one by one."""
        if isinstance(self.ask, Exchange):
            return self.ask.put(asks)
        return [self.ask(each.question, each.partitions) for each in asks]

    def training(self) -> dict[int, int]:
        """The partitions that a cohort can be drawn from now, and their training labels."""
        none = self.panel | self.away
        return {p: n for p, n in self.present().items() if p not in none}

    def measuring(self) -> list[int]:
        """The partitions whose held-out parts are measured on now."""
        return [p for p in self.present() if not self.panel or p in self.panel]
