"""What hosts say to a question, added up in the order of hosts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fedprune.config import RunConfig
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.form import Form
from fedprune.protocol.messages import Question
from fedprune.protocol.parts import PartitionPart, with_part
from fedprune.protocol.running_sum import RunningSum, summed
from fedprune.protocol.sum_in_file import SumInFile

Outcome = Aggregate | list[PartitionPart]
"""What a host says: one sum, or of a device its parts."""

Asked = tuple[Question, Form, RunConfig]
"""What is asked, what an answer consists of, and the configuration."""


class HostSum:
    """What was said to a question, added up host by host in the order of a simulation's hosts.

    That is the same on devices, whoever of them serves what.

    Attributes:
        sum: of the hosts of which all has been said that will be.
    """

    def __init__(
        self, asked: Asked, hosts: Sequence[list[int]], outside: SumInFile | None = None
    ) -> None:
        self._asked, self._outside, self.sum = asked, outside, RunningSum(outside)
        self._hosts = deque(hosts)
        self._said: dict[int, PartitionPart] = {}
        self._whole: dict[int, Aggregate] = {}
        self._over: set[int] = set()

    def take(self, group: list[int], said: Outcome | tuple[Failure, ...]) -> None:
        """Take in what was said of some partitions."""
        if isinstance(said, list):
            self._said |= {part.partition: part for part in said}
        else:
            whole = said if isinstance(said, Aggregate) else Aggregate(failures=said)
            self._whole[group[0]] = whole
        self._over.update(group)
        while self._hosts and self._over.issuperset(self._hosts[0]):
            self._add(self._hosts.popleft())

    def _add(self, group: list[int]) -> None:
        """Add a host; the answer of a partition alone at once, without a sum of its own."""
        if len(group) > 1 or group[0] not in self._said or self._asked[1].singly:
            self.sum.add(self._of_host(group))
            return
        part = self._said.pop(group[0])
        self.sum.grow(lambda before: with_part(part, *self._asked, before, self._outside))

    def _of_host(self, group: list[int]) -> Aggregate:
        """The partitions of one host of a simulation, added in their order."""
        total = Aggregate()
        for p in group:
            if p in self._said:
                part = self._said.pop(p)
                total = with_part(part, *self._asked, total)
            elif p in self._whole:
                total = summed([total, self._whole.pop(p)])
        return total
