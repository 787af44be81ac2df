"""Statistics of what goes into a layer: one function of input rows, added up by hooks.

For a convolution a row is what its window covers at one place, so that every weight of the
(out, columns) view has a column of inputs. Whatever goes through the layer is a row: padding and
unlabelled tokens too. What is sent of a tensor are the sums of its columns and the number of rows,
under names of their own (`inputs_of`, `rows_of`). What several tensors read alike (queries, keys
and values; gate and up) is summed and sent once, under the first one's name; `with_shared` gives it
to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.scores.score import Probe, Shapes, Statistic, Watcher
from fedprune.streaming.blocks import send_through
from fedprune.structure.groups import input_of
from fedprune.structure.layers import groups, input_rows, layers_of, watching
from fedprune.structure.layout import Layout, as_rows
from fedprune.tensors.lazy import joined_to
from fedprune.tensors.named import Tensors

_Each = Callable[[Tensor], Tensor]
"""From input rows (rows, columns) to what is added up: (columns,), or (columns, columns)."""


def squares(x: Tensor) -> Tensor:
    """Σ x² of every column."""
    return x.square().sum(0)


def absolutes(x: Tensor) -> Tensor:
    """Σ |x| of every column."""
    return x.abs().sum(0)


def nonzeros(x: Tensor) -> Tensor:
    """How many rows are not 0, of every column."""
    return (x != 0).sum(0)


def products(x: Tensor) -> Tensor:
    """Σ x xᵀ over rows."""
    return x.t() @ x


def inputs_of(name: str) -> str:
    """What the sums of a weight's inputs are called."""
    return f"{name}/inputs"


def rows_of(name: str) -> str:
    """What the number of rows that a weight was multiplied by is called."""
    return f"{name}/rows"


def sums_of(name: str) -> str:
    """What the sum Σ x of a weight's inputs is called."""
    return f"{name}/sums"


def inputs_ask(each: _Each, *, square: bool = False) -> Statistic:
    """The question for such sums, in a pass of their own (1 forward) or while tuning.

    `square`: whether that is (columns, columns) instead of (columns,).
    """

    def shapes(layout: Layout, names: Sequence[str], _unit: str, _probes: int) -> Shapes:
        return _shapes(layout, names, square)

    found = SumOverInputs(each, shapes)
    more = _operations if square else None
    return Statistic(
        found, shapes, watch=found.watch, passes="1 forward", signed=square, products=more
    )


def _operations(rows: Mapping[str, float], shapes: Shapes) -> float:
    """Of x xᵀ: a multiplication and an addition for each of its numbers and every row."""
    squared = {n: shapes[inputs_of(n)] for n in rows if inputs_of(n) in shapes}
    return sum(2.0 * shape.numel() * rows[n] for n, shape in squared.items())


@dataclass(frozen=True)
class SumOverInputs:
    """Sums over the rows that go into layers.

    Attributes:
        each: what is added up of some rows.
        shapes: as `fedprune.scores.score.Statistic.shapes`.
    """

    each: _Each
    shapes: Callable[[Layout, Sequence[str], str, int], Shapes]

    @torch.no_grad()
    def __call__(self, probe: Probe) -> Tensors:
        """The sums, as `fedprune.scores.score.Statistic.collect`."""
        with self.watch(probe.model, probe.layout, probe.prunable) as watcher:
            send_through(probe.model, probe.batches, probe.loss, probe.prunable)
        return watcher.sums

    def watch(
        self, model: nn.Module, layout: Layout, names: Sequence[str]
    ) -> AbstractContextManager[Watcher]:
        """The same sums while somebody else runs batches."""
        shapes = self.shapes(layout, names, "", 0)
        return _watched(model, input_of(layout, names), shapes, self.each)


def with_shared(sums: Tensors, layout: Layout, names: Sequence[str]) -> Tensors:
    """The sums also under the names of those of the tensors that read the same input as another."""
    of = aliases(sums, layout, names)
    return joined_to(sums, {alias: sums[source] for alias, source in of.items()}) if of else sums


def aliases(given: Container[str], layout: Layout, names: Sequence[str]) -> dict[str, str]:
    """The names of sums that are not among those given, and which of those they are equal to."""
    return {
        named(name): named(source)
        for name, source in input_of(layout, names).items()
        for named in (inputs_of, rows_of, sums_of)
        if named(name) not in given and named(source) in given
    }


def no_sums(model: nn.Module, shapes: Shapes) -> Tensors:
    """Zeros of these shapes, float64, where the model is."""
    device = next(model.parameters()).device
    return {n: torch.zeros(s, dtype=torch.float64, device=device) for n, s in shapes.items()}


_AT_ONCE = 512
"""Lines of a sum that are added to at once: to widen all would take as much memory again."""


def add_rows(sums: Tensors, name: str, rows: Tensor, each: _Each) -> None:
    """Add what a weight's layer was given, (B, rows, groups, columns), to sums."""
    flat = rows.flatten(0, 2)
    parts = sums[inputs_of(name)].split(_AT_ONCE), each(flat).split(_AT_ONCE)
    for part, more in zip(*parts, strict=True):
        part += more
    sums[rows_of(name)] += flat.shape[0]


class SameInputs:
    """Whether layers that are said to read the same input do: Σ x of each, compared in the end.

    Attributes:
        sources: as `fedprune.structure.groups.input_of`.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources
        self._alike = [name for name, source in sources.items() if name != source]
        self._seen = dict.fromkeys((*self._alike, *(sources[name] for name in self._alike)), 0.0)

    def note(self, name: str, x: Tensor) -> None:
        """What a weight's layer was given."""
        if name in self._seen:
            self._seen[name] += float(x.detach().sum(dtype=torch.float64))

    def check(self) -> None:
        """Refuse a model in which one reads something else."""
        for name in self._alike:
            seen, source = self._seen[name], self.sources[name]
            if seen != self._seen[source] and math.isfinite(seen):
                raise ValueError(
                    f"score: {name} does not read what {source} reads, as in its kind of "
                    f"module; allowed: modules as transformers has them (--exclude {name})"
                )


@contextmanager
def _watched(
    model: nn.Module, sources: Mapping[str, str], shapes: Shapes, each: _Each
) -> Iterator[Watcher]:
    layers = layers_of(model, list(sources))
    alike = SameInputs(sources)
    for name, found in layers.items():
        if not found or any(groups(layer) > 1 for layer in found):
            raise _no_inputs(name)
    sums = no_sums(model, shapes)

    def seen(name: str, layer: nn.Module, x: Tensor, _y: Tensor) -> None:
        alike.note(name, x)
        if inputs_of(name) not in sums:
            return
        wide = torch.promote_types(x.dtype, torch.float32)  # sums of half precision are too coarse
        add_rows(sums, name, input_rows(layer, x.detach().to(wide)), each)

    with watching(layers, seen):
        yield Watcher(sums)
    alike.check()


def _shapes(layout: Layout, names: Sequence[str], square: bool) -> Shapes:
    shapes: dict[str, torch.Size] = {}
    for name, source in input_of(layout, names).items():
        if layout.kinds.get(name) == "other":
            raise _no_inputs(name)
        if name != source:
            continue
        columns = as_rows(layout, name, torch.empty(layout.shapes[name], device="meta")).shape[1:]
        shapes[inputs_of(name)] = columns + columns if square else columns
        shapes[rows_of(name)] = torch.Size([1])
    return shapes


def _no_inputs(name: str) -> ValueError:
    return ValueError(
        f"score: {name} has no inputs to measure; allowed: weights of linear layers and ungrouped "
        f"convolutions that are called as layers (--exclude {name}), or another score"
    )
