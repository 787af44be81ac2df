"""What functions and methods do with channels; any other fixes the channels it meets."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fedprune.structure.channels.flow import (
    MIXED,
    Propagate,
    Trace,
    Value,
    flattened,
    pool_flow,
    same,
    spatial,
)
from fedprune.structure.channels.layers import MODULES
from fedprune.structure.layer_kinds import plain_kind


def is_shape(node: fx.Node) -> bool:
    """Whether a node asks for all sizes of a tensor."""
    if node.op == "call_function":
        return node.target is getattr and node.args[1] == "shape"
    return node.op == "call_method" and node.target == "size" and len(node.args) == 1


def _flatten(_book: Trace, _node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    start = kwargs.get("start_dim", args[1] if len(args) > 1 else 0)
    end = kwargs.get("end_dim", args[2] if len(args) > 2 else -1)
    return flattened(args[0]) if (start, end) == (1, -1) else None


def _view(_book: Trace, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    """Only flattening: ``x.view(x.size(0), -1)`` or ``x.view(-1, a number)``."""
    shape = node.args[1:]
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    if len(shape) != 2:
        return None
    rows, features = shape
    batch = isinstance(rows, fx.Node) and _is_batch_size(rows, node.args[0])
    fits = (batch and features == -1) or (rows == -1 and isinstance(features, int))
    return flattened(args[0]) if fits else None


def _is_batch_size(node: fx.Node, of: object) -> bool:
    if node.op == "call_method" and node.target == "size":
        return node.args[0] is of and node.args[1:] == (0,)
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    shape = node.args[0]
    return isinstance(shape, fx.Node) and is_shape(shape) and shape.args[0] is of


def _averaged(_book: Trace, _node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Mean over all positions of a map."""
    value = args[0] if args and isinstance(args[0], Value) and not args[0].last else None
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    if value is None or dims is None:
        return None
    given = [dims] if isinstance(dims, int) else list(dims)
    if sorted(d % value.rank for d in given) != list(range(2, value.rank)):
        return None
    return value if keep else Value(value.flow, 2, last=True)


def _together(book: Trace, _node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Sums, differences, products: channel by channel, or with a number."""
    if set(kwargs) - {"alpha", "inplace"} or len(args) != 2:
        return None
    left, right = args
    if isinstance(left, int | float) or isinstance(right, int | float):
        value = right if isinstance(left, int | float) else left
        return value if isinstance(value, Value) else None
    if not isinstance(left, Value) or not isinstance(right, Value):
        return None
    if (left.last, left.rank, left.spread) != (right.last, right.rank, right.spread):
        return None
    if left.spread == MIXED or len(left.flow) != len(right.flow):
        return None
    book.unite(left.flow, right.flow)
    return left


def _divided(book: Trace, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """By a number only: a masked channel would become 0 / 0."""
    by_number = len(args) == 2 and isinstance(args[1], int | float)
    return _together(book, node, args, kwargs) if by_number else None


def _beside(_book: Trace, _node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Concatenation along the channels."""
    pieces = args[0] if args else kwargs.get("tensors", ())
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if not isinstance(pieces, list | tuple) or not all(isinstance(p, Value) for p in pieces):
        return None
    first: Value = pieces[0]
    kinds = {(p.last, p.rank) for p in pieces}
    where = (1, -1) if first.last else (1, 1 - first.rank)
    if len(kinds) > 1 or dim not in where or (first.last and first.rank != 2):
        return None
    spread = 1 if all(p.spread == 1 for p in pieces) else MIXED
    return replace(first, flow=[v for p in pieces for v in p.flow], spread=spread)


_F = nn.functional
_POINTWISE = (
    torch.relu, torch.sigmoid, torch.tanh, _F.relu, _F.relu6, _F.leaky_relu, _F.elu, _F.gelu,
    _F.silu, _F.mish, _F.sigmoid, _F.tanh, _F.softplus, _F.hardswish, _F.hardsigmoid, _F.dropout,
)  # fmt: skip
_SPATIAL = (
    _F.avg_pool1d, _F.avg_pool2d, _F.adaptive_avg_pool1d, _F.adaptive_avg_pool2d, _F.interpolate,
    _F.dropout2d,
)  # fmt: skip
_POOLING = (
    torch.max_pool1d, torch.max_pool2d, _F.max_pool1d, _F.max_pool2d, _F.adaptive_max_pool1d,
    _F.adaptive_max_pool2d,
)  # fmt: skip
_TOGETHER = (
    operator.add, operator.sub, operator.mul, operator.iadd, operator.imul,
    torch.add, torch.sub, torch.mul,
)  # fmt: skip

FUNCTIONS: dict[Any, Propagate] = {
    **dict.fromkeys(_POINTWISE, same),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_POOLING, pool_flow),
    **dict.fromkeys(_TOGETHER, _together),
    operator.truediv: _divided,
    torch.div: _divided,
    torch.flatten: _flatten,
    torch.mean: _averaged,
    torch.cat: _beside,
}

TENSOR_METHODS: dict[str, Propagate] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone"), same),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_"), _together),
    "div": _divided,
    "flatten": _flatten,
    "mean": _averaged,
    **dict.fromkeys(("view", "reshape"), _view),
}


def follow(graph: fx.Graph, book: Trace) -> None:
    """Write down what a graph does with channels."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        args: Any = fx.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
        step = _step(book, node)
        values[node] = None if step is None else step(book, node, args, kwargs)
        if values[node] is None and not _only_asks_sizes(node):
            for given in node.all_input_nodes:
                known: Value | None = values[given]
                book.fix_all([] if known is None else known.flow)
            if node.op == "call_module":
                book.spoiled.add(str(node.target))
        if node.op == "get_attr":
            book.exposed.add(str(node.target).rpartition(".")[0])


def _step(book: Trace, node: fx.Node) -> Propagate | None:
    if node.op == "call_module":
        kind = plain_kind(book.modules[str(node.target)], MODULES)
        return None if kind is None else MODULES[kind]
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)
    return TENSOR_METHODS.get(str(node.target)) if node.op == "call_method" else None


def _only_asks_sizes(node: fx.Node) -> bool:
    """Whether a node asks for sizes of a tensor other than the number of its channels."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return node.args[1] in (0, 2, 3, 4)
    return is_shape(node) and all(
        user.target is operator.getitem and user.args[1] in (0, 2, 3, 4) for user in node.users
    )
