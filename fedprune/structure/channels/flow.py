"""What is known of channels while a network is followed: variables, and where they run through.

Every output of a layer starts as a variable of its own. What adds or multiplies two makes them one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

Flow = list[int]
"""Variables, one for each position along the channels of a tensor."""

EQUAL, MIXED = 0, -1
"""Features of a channel after flattening: unknown, but of all the same; unknown and unlike."""


@dataclass(frozen=True)
class Value:
    """A tensor whose channels are known.

    Attributes:
        flow: the variable of each channel.
        rank: dimensions of the tensor; 0 = unknown.
        last: whether channels are its last dimension; else they are the second of a batch of maps.
        spread: how many features stand for a channel: 1, or `EQUAL`, or `MIXED`.
    """

    flow: Flow
    rank: int
    last: bool
    spread: int = 1


@dataclass
class Trace:
    """What is written down while a graph is followed: variables, and the layers they run through.

    Attributes:
        modules: of the model, by path.
        rows: variables of each layer's output rows.
        columns: variables of what each layer reads.
        makers: layers whose rows are their own.
        spoiled: layers that were given something unknown.
        exposed: layers whose parameters are read by others than themselves.
    """

    modules: Mapping[str, nn.Module]
    rows: dict[str, Flow] = field(default_factory=dict)
    columns: dict[str, Flow] = field(default_factory=dict)
    makers: set[str] = field(default_factory=set)
    spoiled: set[str] = field(default_factory=set)
    exposed: set[str] = field(default_factory=set)
    _above: list[int] = field(default_factory=list)
    _fixed: set[int] = field(default_factory=set)

    def fresh(self, count: int) -> Flow:
        """So many new variables."""
        start = len(self._above)
        self._above.extend(range(start, start + count))
        return list(range(start, start + count))

    def root(self, variable: int) -> int:
        """The variable that stands for all that are one with this one."""
        while self._above[variable] != variable:
            self._above[variable] = self._above[self._above[variable]]
            variable = self._above[variable]
        return variable

    def unite(self, left: Flow, right: Flow) -> None:
        """What stands at the same place becomes one; flows of unlike length are fixed."""
        if len(left) != len(right):
            self.fix_all([*left, *right])
            return
        for a, b in zip(left, right, strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            self._above[high] = low

    def fix_all(self, variables: Iterable[int]) -> None:
        """These are never cut."""
        self._fixed.update(variables)

    def fix_doubtful(self) -> None:
        """What spoiled layers let through or read is never cut, and nothing of exposed ones."""
        for path in self.spoiled | self.exposed:
            kept = path in self.makers and path not in self.exposed
            own = () if kept else self.rows.get(path, ())
            self.fix_all([*own, *self.columns.get(path, ())])

    def numbers(self, flow: Sequence[int]) -> tuple[int, ...]:
        """One number for all that are one, -1 for those that are never cut."""
        fixed = {self.root(v) for v in self._fixed}
        return tuple(-1 if self.root(v) in fixed else self.root(v) for v in flow)

    def make(self, path: str, count: int) -> Flow:
        """The variables that a layer makes: the same, however often it is called."""
        self.makers.add(path)
        if path not in self.rows:
            self.rows[path] = self.fresh(count)
        return self.rows[path]

    def carry(self, path: str, flow: Flow) -> None:
        """A layer with one row for each channel lets them through."""
        self.unite(self.rows.setdefault(path, list(flow)), flow)

    def read(self, path: str, flow: Flow) -> None:
        """A layer reads these, a column for each."""
        self.unite(self.columns.setdefault(path, list(flow)), flow)


Propagate = Callable[[Trace, fx.Node, Sequence[Any], Mapping[str, Any]], Value | None]
"""Follows one operation, from what is known of its arguments; None: nothing is known of it."""


def same(_book: Trace, _node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    """Each position by itself; channels stay what they are."""
    return args[0] if args and isinstance(args[0], Value) else None


def spatial(book: Trace, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Positions of a map among themselves, channel by channel."""
    value = same(book, node, args, kwargs)
    return None if value is None or value.last else value


def pool_flow(book: Trace, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """A pool that gives one tensor (with indices it gives two)."""
    if kwargs.get("return_indices"):
        return None
    module = book.modules.get(str(node.target)) if node.op == "call_module" else None
    several = getattr(module, "return_indices", False)
    return None if several else spatial(book, node, args, kwargs)


def flattened(value: Any) -> Value | None:
    """Maps (B, C, ...) as rows (B, C * positions)."""
    if not isinstance(value, Value) or value.spread != 1:
        return None
    if value.rank == 2:
        return value
    return None if value.last else Value(value.flow, 2, last=True, spread=EQUAL)
