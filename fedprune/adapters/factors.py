"""Factors beside frozen weights: names, shapes, and the weights that they make.

A layer of weight W (out, in), mask M and factors A (rank, in), B (out, rank) computes with
W∘M + s·(BA)∘M: LoRA (Hu et al. 2022, arXiv 2106.09685, eq. 3) under the mask of the weight, so that
the product is pruned wherever the weight is and merging keeps the mask exactly. What is trained is
called *adapters* here: all factors, by the names that `peft` gives them in the model, and the
parameters that are trained whole (a fresh head of output), by their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.randomness import generator
from fedprune.scores.score import Shapes
from fedprune.structure.layout import Layout, from_rows, matrix_shape
from fedprune.structure.matrices import out_in_of
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Tensors, masked

DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""What follows the path of a layer in the names of its factors A and B."""


def paths_in(adapters: Mapping[str, object]) -> tuple[str, ...]:
    """The paths of the layers that have factors, sorted."""
    return tuple(sorted(n.removesuffix(DOWN) for n in adapters if n.endswith(DOWN)))


def changed_by(adapters: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the model's tensors that adapters change, sorted."""
    weights = {f"{path}.weight" for path in paths_in(adapters)}
    return tuple(sorted(weights | {n for n in adapters if not n.endswith((DOWN, UP))}))


def adapter_shapes(
    paths: tuple[str, ...], whole: tuple[str, ...], rank: int, layout: Layout
) -> dict[str, torch.Size]:
    """The shapes of factors for these layers, and of parameters that are trained whole."""
    shapes = {name: layout.shapes[name] for name in whole}
    for path in paths:
        out, inputs = matrix_shape(layout, f"{path}.weight")
        shapes[f"{path}{DOWN}"] = torch.Size([rank, inputs])
        shapes[f"{path}{UP}"] = torch.Size([out, rank])
    return dict(sorted(shapes.items()))


def first_adapters(
    shapes: Shapes, weights: Mapping[str, Tensor], seed: int, *where: int
) -> Tensors:
    """Adapters that were not trained yet: A uniform in ±1/sqrt(in), B zero, as `peft` begins them.

    Args:
        shapes: from `adapter_shapes`.
        weights: of the model: what is trained whole begins with its own.
        seed: of the run.
        where: numbers of the place that they are for; the same ones, the same factors.
    """
    return {name: _first(name, shape, weights, seed, *where) for name, shape in shapes.items()}


def _first(
    name: str, shape: torch.Size, weights: Mapping[str, Tensor], seed: int, *where: int
) -> Tensor:
    if name.endswith(UP):
        return torch.zeros(shape)
    if not name.endswith(DOWN):
        own = weights[name]
        return own.to(torch.promote_types(own.dtype, torch.float32), copy=True)
    gen = generator(seed, f"adapters {name}", *where)
    drawn: Tensor = (2 * torch.rand(shape, generator=gen) - 1) / shape[1] ** 0.5
    return drawn


def effective(
    frozen: Mapping[str, Tensor],
    adapters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    layout: Layout,
    scale: float,
) -> Tensors:
    """The weights that a model with adapters computes with, exactly 0.0 where a mask is False.

    Each is rounded to the type of the frozen one. Tensors that adapters do not change are those of
    `frozen`, not copies. `frozen` is 0.0 there too; `scale` is the factor of BA.
    """
    weights = dict(frozen)
    for name in changed_by(adapters):
        value = adapters[name] if name in adapters else frozen[name].clone()
        if name not in adapters:
            value += product(adapters, name.removesuffix(".weight"), layout) * scale
        weights[name] = masked({name: value.to(frozen[name].dtype)}, masks)[name]
    return weights


def product(adapters: Mapping[str, Tensor], path: str, layout: Layout) -> Tensor:
    """BA of a layer, in the shape of its weight."""
    rows = adapters[f"{path}{UP}"] @ adapters[f"{path}{DOWN}"]
    return from_rows(layout, f"{path}.weight", rows)


def cut_adapters(adapters: Mapping[str, Tensor], layout: Layout) -> Tensors:
    """What is left of adapters of whole layers after parts of the model were cut out.

    Adapters are in the shapes of the dense model; the layout is of what is left.
    """
    origin, left = layout.origin, dict(adapters)
    if origin is None:
        return left
    for path in paths_in(adapters):
        name = f"{path}.weight"
        down, up = left.pop(f"{path}{DOWN}"), left.pop(f"{path}{UP}")
        if name in layout.shapes:
            lines = origin.places.axes.get(name, (None, None))
            rows, columns = out_in_of(origin.layout.kinds.get(name, "other"), lines)
            left[f"{path}{DOWN}"] = down if columns is None else down[:, columns]
            left[f"{path}{UP}"] = up if rows is None else up[rows]
    factors = {n: t for n, t in left.items() if n.endswith((DOWN, UP))}
    return factors | origin.places.restrict({n: t for n, t in left.items() if n not in factors})


def trained_shapes(adapters: Mapping[str, Tensor], fresh: int, layout: Layout) -> Shapes:
    """The shapes of what is trained: of the adapters, or of fresh factors of a rank beside them."""
    if not fresh:
        return shapes_of(adapters)
    whole = tuple(n for n in adapters if not n.endswith((DOWN, UP)))
    return adapter_shapes(paths_in(adapters), whole, fresh, layout)


def adapter_layout(shapes: Shapes) -> Layout:
    """The layout of what is trained: nothing of it is pruned by itself, none is a statistic."""
    return Layout(dict(shapes), (), tuple(shapes), {})


def check_adapters(shapes: Shapes, layout: Layout) -> None:
    """Refuse adapters that are not those of some layers of a model.

    Raises:
        ValueError: a factor without its other one, of no layer, of other sizes or another rank than
            it.
    """
    paths = paths_in(shapes)
    whole = tuple(n for n in shapes if not n.endswith((DOWN, UP)))
    lacking = [n for n in (*(f"{p}.weight" for p in paths), *whole) if n not in layout.shapes]
    flat = [p for p in paths if len(layout.shapes.get(f"{p}.weight", (0, 0))) != 2]
    if lacking or flat:
        raise ValueError(f"adapters: {(lacking or flat)[0][:100]!r} is no layer of the model")
    wanted = {name: layout.shapes[name] for name in whole}
    for path in paths:
        rank = (*shapes[f"{path}{DOWN}"], 0)[0]
        wanted |= adapter_shapes((path,), (), rank, layout)
    if dict(shapes) != wanted:
        raise ValueError("adapters: shapes that do not fit the model's layers")
