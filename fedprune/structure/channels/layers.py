"""What layers do with channels, a table by their type; any other fixes the channels it meets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from fedprune.structure.channels.flow import (
    EQUAL,
    Flow,
    Propagate,
    Trace,
    Value,
    flattened,
    pool_flow,
    same,
    spatial,
)
from fedprune.structure.low_rank_layers import Factored, makes, reads


def _convolution(book: Trace, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    path = str(node.target)
    maker: Any = makes(book.modules[path])
    reader: Any = reads(book.modules[path])
    rank = len(maker.kernel_size) + 2
    value = args[0] if args and isinstance(args[0], Value) and not args[0].last else None
    if maker.groups == reader.in_channels == maker.out_channels > 1:
        if value is None or len(value.flow) != reader.in_channels:
            return None
        book.carry(path, value.flow)
        return replace(value, rank=rank)
    made = Value(book.make(path, maker.out_channels), rank, last=False)
    _reads(book, path, args, value, reader.in_channels)
    if maker.groups > 1:
        book.fix_all([*made.flow, *book.columns.get(path, ())])
    return made


def _linear(book: Trace, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    path = str(node.target)
    maker: Any = makes(book.modules[path])
    reader: Any = reads(book.modules[path])
    value = args[0] if args and isinstance(args[0], Value) and args[0].last else None
    made = Value(book.make(path, maker.out_features), value.rank if value else 0, last=True)
    _reads(book, path, args, value, reader.in_features)
    return made


def _factored(book: Trace, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Two factors in place of a layer make and read what it did."""
    linear = isinstance(makes(book.modules[str(node.target)]), nn.Linear)
    return (_linear if linear else _convolution)(book, node, args, kwargs)


def _reads(book: Trace, path: str, args: Sequence[Any], value: Value | None, width: int) -> None:
    """Write down what a layer reads; what does not fit is fixed."""
    columns = None if value is None else _columns(value, width)
    if columns is not None:
        book.read(path, columns)
        return
    book.spoiled.add(path)
    for given in args:
        book.fix_all(given.flow if isinstance(given, Value) else ())


def _columns(value: Value, width: int) -> Flow | None:
    """The variable of every feature that a layer of this width reads."""
    times, rest = divmod(width, max(1, len(value.flow)))
    if rest or (value.spread != EQUAL and times != 1):
        return None
    return [variable for variable in value.flow for _ in range(times)]


def _carried(book: Trace, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    """A layer with a weight for each channel, if it has any weights."""
    path = str(node.target)
    layer: Any = book.modules[path]
    value = args[0] if args and isinstance(args[0], Value) else None
    if value is None or value.spread != 1 or (value.last and value.rank not in (0, 2)):
        return None
    size = getattr(layer, "num_features", getattr(layer, "num_channels", len(value.flow)))
    if size != len(value.flow):
        return None
    book.carry(path, value.flow)
    return value


def _on_maps(book: Trace, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Instance normalisation: of rows (B, C) it would take all features together."""
    return None if spatial(book, node, args, kwargs) is None else _carried(book, node, args, kwargs)


def _grouped(book: Trace, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """GroupNorm: channels that are normalised together go together."""
    value = _carried(book, node, args, kwargs)
    if value is None:
        return None
    size = len(value.flow) // book.modules[str(node.target)].num_groups  # type: ignore[operator]
    firsts = [value.flow[i // size * size] for i in range(len(value.flow))]
    book.unite(firsts, value.flow)
    return value


def _prelu(book: Trace, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    single = book.modules[str(node.target)].num_parameters == 1
    return (same if single else _carried)(book, node, args, kwargs)


def _flatten_layer(book: Trace, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    layer: Any = book.modules[str(node.target)]
    return flattened(args[0]) if (layer.start_dim, layer.end_dim) == (1, -1) else None


_POINTWISE_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
    nn.LogSigmoid, nn.Identity, nn.Dropout, nn.AlphaDropout,
)  # fmt: skip
_SPATIAL_LAYERS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

MODULES: dict[type[nn.Module], Propagate] = {
    **dict.fromkeys(_POINTWISE_LAYERS, same),
    **dict.fromkeys(_SPATIAL_LAYERS, spatial),
    **dict.fromkeys(_POOLS, pool_flow),
    **dict.fromkeys(_BATCH_NORMS, _carried),
    **dict.fromkeys(_INSTANCE_NORMS, _on_maps),
    nn.GroupNorm: _grouped,
    nn.PReLU: _prelu,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    nn.Linear: _linear,
    Factored: _factored,
    nn.Flatten: _flatten_layer,
}
