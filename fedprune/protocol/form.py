"""The form of an answer: names and shapes of its values, and what a server checks them against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fedprune.protocol.failures import longest_about
from fedprune.scores.inputs import inputs_of
from fedprune.scores.score import Shapes
from fedprune.tensors.lazy import shapes_of, some_of
from fedprune.tensors.named import Masks, Tensors, count_kept, scattered

LARGEST_NUMBER = 1e30
"""Size beyond which no number counts: what is added up becomes float32, which ends at 3.4e38."""

MANY = 2**53
"""More labels than this nobody has; up to here every count is a float64 of its own."""


@dataclass(frozen=True)
class Form:
    """What an answer consists of.

    Attributes:
        shapes: of the values, by name.
        masks: where they are kept; names without a mask come whole.
        totals: the named sums that come along.
        sums: shapes of the statistics that come beside the values.
        voters: how many flags the votes hold; 0: no votes are expected.
        own: the values come on the client's own mask, which its votes are.
        singly: the server needs the values of each client, not only their sum.
        noisy: the totals come with noise, and any of them may be negative.
        normed: the server needs the norm of each client's values.
        within: between which numbers every value lies.
        positive: no statistic beside the values is negative.
        alike: names of values that do not come, for they are those of another name.
        exact: the values are as they were computed; else the client has added noise, and nothing
            need hold between them.
        whole_sums: the statistics beside the values are of removed weights too.
        resampled: the server adds the totals up in resamples of clients, too.
        weighed: the values' factor in the sum is the client's number of labels; else it is 1.
    """

    shapes: Shapes
    masks: Masks = field(default_factory=dict)
    totals: frozenset[str] = frozenset()
    sums: Shapes = field(default_factory=dict)
    voters: int = 0
    own: bool = False
    singly: bool = False
    noisy: bool = False
    normed: bool = False
    within: tuple[float, float] = (-LARGEST_NUMBER, LARGEST_NUMBER)
    positive: bool = False
    whole_sums: bool = False
    resampled: bool = False
    weighed: bool = True
    exact: bool = True
    alike: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def values(self) -> int:
        """How many values an answer carries."""
        return _numbers(self.shapes, self.masks)

    @cached_property
    def statistics(self) -> int:
        """How many statistics come beside them."""
        return _numbers(self.sums, self._masks_of_sums)

    @property
    def _masks_of_sums(self) -> Masks:
        return {} if self.whole_sums else self.masks

    @cached_property
    def of_inputs(self) -> bool:
        """Whether any of the values are sums of a weight's inputs."""
        return any(name.endswith(inputs_of("")) for name in self.shapes)

    @cached_property
    def sums_of_inputs(self) -> bool:
        """Whether any of the statistics are."""
        return any(name.endswith(inputs_of("")) for name in self.sums)

    @cached_property
    def longest_head(self) -> int:
        """Bytes that the head of an answer may take."""
        return longest_about(1, self.totals)

    @cached_property
    def largest(self) -> int:
        """Bytes that an answer may take: its head, four for each value, and one for each vote."""
        return self.longest_head + 4 * (self.values + self.statistics) + self.voters + 64

    def named(self, flat: Tensor, *, shared: bool = False) -> Tensors:
        """Values by name, 0.0 where a mask is False; `shared`: may be the flat one's memory."""
        masks = fitting(self.shapes, self.masks)
        found = scattered(flat, self.shapes, masks, shared=shared)
        return found | {name: found[of] for name, of in self.alike.items()}

    def named_sums(self, flat: Tensor, *, shared: bool = False) -> Tensors:
        """Statistics by name, as `named`."""
        masks = fitting(self.sums, self._masks_of_sums)
        found = scattered(flat, self.sums, masks, shared=shared)
        return found | {name: found[of] for name, of in self.alike.items()}


def fitting(shapes: Shapes, masks: Masks) -> Masks:
    """The masks that apply: those of the same name and shape."""
    own = shapes_of(masks)
    return some_of(masks, [n for n, s in shapes.items() if own.get(n) == s])


def _numbers(shapes: Shapes, masks: Masks) -> int:
    given = fitting(shapes, masks)
    return count_kept(given) + sum(s.numel() for n, s in shapes.items() if n not in given)
