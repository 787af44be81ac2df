"""Layers as matrix products: what goes into a weight's columns and what comes out of its rows.

Linear layers, GPT-2's Conv1D and convolutions of any dimension are the same thing here: rows of
inputs times a matrix (out, in) in the view of `fedprune.structure.layout.as_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from fedprune.structure.layer_kinds import CONVOLUTIONS, is_layer
from fedprune.tensors.hooks import removed_after

Seen = Callable[[str, nn.Module, Tensor, Tensor], Tensor | None]
"""Called with a weight's name, the layer, its input and its output; may return another output."""


def parameters_of(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The model's own parameters of these names."""
    owned = dict(model.named_parameters())
    return {name: owned[name] for name in names}


def layers_of(model: nn.Module, names: Sequence[str]) -> dict[str, list[nn.Module]]:
    """The layers that multiply by each of these weights: several where weights are tied.

    None for what is not the weight of a layer, and for the output projection of
    `nn.MultiheadAttention`, whose weight is used without calling the layer.
    """
    called_for = bypassed(model)
    owners = {id(p): name for name, p in parameters_of(model, names).items()}
    found: dict[str, list[nn.Module]] = {name: [] for name in names}
    for module in model.modules():
        if is_layer(module) and id(module) not in called_for and id(module.weight) in owners:
            found[owners[id(module.weight)]].append(module)
    return found


def bypassed(model: nn.Module) -> set[int]:
    """The layers (by id) whose weight another module uses without calling them."""
    return {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


@contextmanager
def watching(layers: Mapping[str, Sequence[nn.Module]], seen: Seen) -> Iterator[None]:
    """Within the block `seen` is called whenever one of the layers has been."""

    def hook_of(name: str) -> Callable[..., Tensor | None]:
        def hook(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor
        ) -> Tensor | None:
            return seen(name, module, next(iter((*args, *kwargs.values()))), y)

        return hook

    hooks = [
        module.register_forward_hook(hook_of(name), with_kwargs=True)
        for name, modules in layers.items()
        for module in modules
    ]
    with removed_after(hooks):
        yield


def groups(layer: nn.Module) -> int:
    """How many blocks on its diagonal the matrix has: 1 but for grouped convolutions."""
    return layer.groups if isinstance(layer, CONVOLUTIONS) else 1


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input (B, ...) as (B, rows, groups, columns): what its matrix is multiplied by.

    For a linear layer the rows are the places between the first and the last dimension; for a
    convolution the places of its window, and the columns are channels times kernel.
    """
    if not isinstance(layer, CONVOLUTIONS):
        # Spelled out: of an expert that no token was sent to, -1 could be any number.
        return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), 1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    dimensions = range(2, x.dim())
    for i, size, step, spread in zip(
        dimensions, layer.kernel_size, layer.stride, layer.dilation, strict=True
    ):
        # A new last dimension of windows, of which a dilated kernel reads every so many.
        x = x.unfold(i, (size - 1) * spread + 1, step)[..., ::spread]
    places, windows = x.shape[2 : 2 + len(dimensions)], x.shape[2 + len(dimensions) :]
    x = x.reshape(x.shape[0], layer.groups, -1, places.numel(), windows.numel())
    return x.permute(0, 3, 1, 2, 4).flatten(3)


def output_rows(layer: nn.Module, y: Tensor) -> Tensor:
    """A layer's output (B, ...) as (B, rows, out): the rows those of `input_rows`."""
    if isinstance(layer, CONVOLUTIONS):
        return y.flatten(2).transpose(1, 2)
    return y.reshape(y.shape[0], math.prod(y.shape[1:-1]), y.shape[-1])


def as_output(layer: nn.Module, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `output_rows`, to an output of the given shape."""
    if isinstance(layer, CONVOLUTIONS):
        return rows.transpose(1, 2).reshape(shape)
    return rows.reshape(shape)
