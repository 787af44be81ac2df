"""Neighbours that could be one: linear maps without anything between, norms before linear maps.

What feeds what is seen in a run on one example: a layer follows another if its input is the very
tensor that the other gave back. Whether a norm's scale can go into what reads it is tried out on a
copy, because a residual connection may read it too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.randomness import generator
from fedprune.structure.layer_kinds import CONVOLUTIONS, is_layer
from fedprune.structure.matrices import matrix_of
from fedprune.tensors.hooks import removed_after

ForwardPass = Callable[[nn.Module], Tensor]
"""Runs a model on one example and gives back what depends on all of it."""

_CLOSE = 1e-9
"""Largest relative difference of outputs in float64 that is called equal."""


@dataclass(frozen=True)
class Chain:
    """Two linear maps of which the second reads nothing but the first.

    `now` are the weights of both, `product` those of the one map that does the same.
    """

    first: str
    second: str
    now: int
    product: int


@dataclass(frozen=True)
class Foldable:
    """A norm whose scale (and shift) can be put into the layers that read it.

    The model has so many parameters fewer then.
    """

    norm: str
    readers: tuple[str, ...]
    parameters: int


def chains(model: nn.Module, run: ForwardPass) -> list[Chain]:
    """Consecutive linear layers of a model, factors included; convolutions are left out.

    Where something else reads the first one's output too, the two are no chain.
    """
    readers = _readers(model, run, _is_linear)
    found = []
    layers = dict(model.named_modules())
    for first, seconds in readers.items():
        if len(seconds) == 1 and _is_linear(layers[first]):
            a, b = matrix_of(layers[first]), matrix_of(layers[seconds[0]])
            pair = Chain(first, seconds[0], a.numel() + b.numel(), b.shape[0] * a.shape[1])
            if _nothing_else_reads(model, run, first, seconds):
                found.append(pair)
    return found


def foldable_norms(model: nn.Module, run: ForwardPass) -> list[Foldable]:
    """Norms with a scale that can go into their readers without a change of what the model says."""
    readers = _readers(model, run, _is_norm)
    modules = dict(model.named_modules())
    found = []
    for norm, paths in readers.items():
        scale = [p for p in (modules[norm].weight, _shift(modules[norm])) if p is not None]
        if paths and _folds(model, run, norm, paths):
            found.append(Foldable(norm, tuple(paths), sum(p.numel() for p in scale)))
    return found


@torch.no_grad()
def fold_norm(norm: nn.Module, readers: Sequence[nn.Module]) -> None:
    """Put a norm's scale and shift into the layers that read it, in place.

    A matrix becomes W·diag(scale), its bias b + W·shift, the norm's own 1 and 0. Exact only where
    nothing else reads the norm.

    Raises:
        ValueError: a shift has to go into a layer without a bias.
    """
    module: Any = norm
    shift = _shift(norm)
    for reader in readers:
        layer: Any = reader
        if shift is not None and bool(shift.any()) and layer.bias is None:
            raise ValueError(f"a shift cannot go into {type(reader).__name__}: it has no bias")
    for reader in readers:
        layer = reader
        if shift is not None and layer.bias is not None:
            layer.bias.add_(matrix_of(layer) @ shift)
        matrix_of(layer).mul_(module.weight)
    module.weight.fill_(1.0)
    if shift is not None:
        shift.zero_()


def _shift(norm: nn.Module) -> Tensor | None:
    return getattr(norm, "bias", None)


def _is_linear(module: nn.Module) -> bool:
    return is_layer(module) and not isinstance(module, CONVOLUTIONS)


def _is_norm(module: nn.Module) -> bool:
    """Whether it has the shape of one: a leaf with a scale for each feature, and perhaps a shift.

    RMSNorm has a class of its own in every family; whether it is one is tried out by folding it.
    """
    own = {name: p.dim() for name, p in module.named_parameters(recurse=False)}
    leaf = next(module.children(), None) is None and next(module.buffers(), None) is None
    return leaf and own in ({"weight": 1}, {"weight": 1, "bias": 1})


def _readers(
    model: nn.Module, run: ForwardPass, makes: Callable[[nn.Module], bool]
) -> dict[str, list[str]]:
    """The linear layers that read what each maker gave back, by path."""
    made: dict[int, str] = {}
    alive: list[Tensor] = []  # an id is only its own as long as the tensor lives
    found: dict[str, list[str]] = {}
    hooks = []

    def before(path: str) -> Callable[..., None]:
        def hook(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            maker = made.get(id(next(iter((*args, *kwargs.values())), None)))
            if maker is not None and path not in found[maker]:
                found[maker].append(path)

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(_m: nn.Module, _args: tuple[Any, ...], y: Tensor) -> None:
            made[id(y)] = path
            alive.append(y)
            found.setdefault(path, [])

        return hook

    for path, module in model.named_modules():
        if _is_linear(module):
            hooks.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        if makes(module):
            hooks.append(module.register_forward_hook(after(path)))
    with removed_after(hooks), torch.no_grad():
        run(model)
    return found


def _nothing_else_reads(
    model: nn.Module, run: ForwardPass, first: str, seconds: Sequence[str]
) -> bool:
    """Whether scaling what the first gives, and undoing that in what reads it, changes nothing."""
    copied = copy.deepcopy(model).double().eval()
    modules: dict[str, Any] = dict(copied.named_modules())
    with torch.no_grad():
        said = run(copied)
        matrix_of(modules[first]).mul_(2.0)
        if modules[first].bias is not None:
            modules[first].bias.mul_(2.0)
        for path in seconds:
            matrix_of(modules[path]).mul_(0.5)
        return _equal(run(copied), said)


def _folds(model: nn.Module, run: ForwardPass, norm: str, readers: Sequence[str]) -> bool:
    """Whether the model says the same after folding, of numbers that are not 1 and 0 by chance."""
    copied = copy.deepcopy(model).double().eval()
    modules: dict[str, Any] = dict(copied.named_modules())
    weights = {id(modules[path].weight) for path in readers}
    owners = [m for m in copied.modules() if id(getattr(m, "weight", None)) in weights]
    if len(owners) > len(readers):
        return False  # a tied table would be scaled as well
    drawn = generator(0, "fold")
    with torch.no_grad():
        for p in (modules[norm].weight, _shift(modules[norm])):
            if p is not None:
                p.add_(torch.rand(p.shape, generator=drawn, dtype=p.dtype) + 0.1)
        said = run(copied)
        try:
            fold_norm(modules[norm], [modules[path] for path in readers])
        except ValueError:
            return False
        return _equal(run(copied), said)


def _equal(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) <= _CLOSE * max(1.0, float(right.abs().max()))
