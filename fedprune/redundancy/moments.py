"""What clients add up about the inputs of layers: Σ x xᵀ, from which everything here is computed.

The diagonal tells dead units, the rest which units move together; W Σ Wᵀ is the same of a linear
layer's outputs. Only sums leave a client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fedprune.scores.inputs import inputs_ask, inputs_of, products, rows_of
from fedprune.structure.layers import groups, layers_of
from fedprune.structure.layout import Layout, matrix_shape
from fedprune.tensors.named import Tensors

MOMENTS = inputs_ask(products, square=True)
"""One forward pass: Σ x xᵀ of every layer asked about, and the number of rows."""

_MOST = 2**26
"""Numbers that one answer may hold; more layers are asked for one question after the other."""


@dataclass(frozen=True)
class Inputs:
    """The clients' sums.

    Attributes:
        products: Σ x xᵀ, (in, in) float64, by the name of the weight whose columns they are.
        rows: how many rows were summed.
    """

    products: Tensors
    rows: Mapping[str, float]

    def moments(self, name: str) -> Tensor:
        """The mean of x xᵀ; 0 where nothing went through the layer."""
        return self.products[name] / max(1.0, self.rows[name])


def inputs_from(sums: Mapping[str, Tensor], names: Sequence[str]) -> Inputs:
    """From the sums of `MOMENTS`."""
    found = {n: sums[inputs_of(n)].double() for n in names}
    return Inputs(found, {n: float(sums[rows_of(n)]) for n in names})


def together(pieces: Sequence[Inputs]) -> Inputs:
    """What several questions asked, as one."""
    parts = [item for piece in pieces for item in piece.products.items()]
    rows = [item for piece in pieces for item in piece.rows.items()]
    return Inputs(dict(parts), dict(rows))


def measurable(model: nn.Module, layout: Layout) -> list[str]:
    """The prunable tensors whose inputs can be seen, in model order.

    Those of layers that are called as layers, grouped convolutions left out.
    """
    found = layers_of(model, layout.prunable)
    return [n for n, ls in found.items() if ls and all(groups(layer) == 1 for layer in ls)]


def questions(layout: Layout, names: Sequence[str], most: int = _MOST) -> Iterator[tuple[str, ...]]:
    """The tensors in their order, cut up so that no answer holds more than `most` numbers."""
    asked: list[str] = []
    size = 0
    for name in names:
        columns = matrix_shape(layout, name)[1]
        if asked and size + columns**2 > most:
            yield tuple(asked)
            asked, size = [], 0
        asked.append(name)
        size += columns**2
    if asked:
        yield tuple(asked)
