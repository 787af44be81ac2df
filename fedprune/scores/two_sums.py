"""Two sums of what goes into layers, of x² and of something of x, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fedprune.scores.inputs import SameInputs, inputs_of, no_sums, rows_of, squares, sums_of
from fedprune.scores.score import Probe, Shapes
from fedprune.streaming.blocks import send_through
from fedprune.structure.groups import input_of
from fedprune.structure.layers import input_rows, layers_of, watching
from fedprune.tensors.named import Tensors


def summed_twice(
    probe: Probe, names: Sequence[str], shapes: Shapes, first: Callable[[Tensor], Tensor]
) -> Tensors:
    """Σ x², Σ first(x) and the number of rows of every layer's inputs, float64.

    What several weights read alike is summed once, where `shapes` has it for the first of them.

    `shapes`: of the sums, by `inputs_of`, `sums_of` and `rows_of`. `first`: of every number by
    itself.
    """
    sums = no_sums(probe.model, shapes)
    alike = SameInputs(input_of(probe.layout, names))

    def seen(name: str, layer: nn.Module, x: Tensor, _y: Tensor) -> None:
        alike.note(name, x)
        if inputs_of(name) not in sums:
            return
        rows = input_rows(layer, x.detach()).flatten(0, 2).double()
        sums[inputs_of(name)] += squares(rows)
        sums[sums_of(name)] += first(rows).sum(0)
        sums[rows_of(name)] += len(rows)

    with watching(layers_of(probe.model, names), seen):
        send_through(probe.model, probe.batches, probe.loss)
    alike.check()
    return sums
