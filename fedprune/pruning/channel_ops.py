"""What operations do with channels, one table each for modules, functions and methods.

A `Value` is what is known of a tensor in the traced graph: which channel each of its positions
holds. Whatever is not in the tables fixes the channels it meets, so that they are never cut.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from fedprune.pruning.factors import Factored, makes, reads

Flow = list[int]
"""Variables, one for each position along the channels of a tensor."""

SAME, MIXED = 0, -1
"""Features of a channel after flattening: unknown, but of all the same; unknown and unlike."""


@dataclass(frozen=True)
class Value:
    """A tensor whose channels are known.

    Attributes:
        flow: the variable of each channel.
        rank: dimensions of the tensor; 0 = unknown.
        last: whether channels are its last dimension; else they are the second of a batch of maps.
        spread: how many features stand for a channel: 1, or `SAME`, or `MIXED`.
    """

    flow: Flow
    rank: int
    last: bool
    spread: int = 1


@dataclass
class Book:
    """What is written down while a graph is followed: variables, and the layers they run through.

    Attributes:
        modules: of the model, by path.
        rows: variables of each layer's output rows.
        columns: variables of what each layer reads.
        makers: layers whose rows are their own.
        spoiled: layers that were given something unknown.
    """

    modules: Mapping[str, nn.Module]
    rows: dict[str, Flow] = field(default_factory=dict)
    columns: dict[str, Flow] = field(default_factory=dict)
    makers: set[str] = field(default_factory=set)
    spoiled: set[str] = field(default_factory=set)
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

    def fix_spoiled(self) -> None:
        """What layers let through or read that were given something unknown is never cut."""
        for path in self.spoiled:
            own = () if path in self.makers else self.rows.get(path, ())
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


Step = Callable[[Book, fx.Node, Sequence[Any], Mapping[str, Any]], Value | None]
"""Follows one operation, from what is known of its arguments; None: nothing is known of it."""


def follow(graph: fx.Graph, book: Book) -> None:
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
            owner = str(node.target).rpartition(".")[0]
            book.fix_all([*book.rows.get(owner, ()), *book.columns.get(owner, ())])


def _step(book: Book, node: fx.Node) -> Step | None:
    if node.op == "call_module":
        return MODULES.get(type(book.modules[str(node.target)]))
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)
    return METHODS.get(str(node.target)) if node.op == "call_method" else None


def _only_asks_sizes(node: fx.Node) -> bool:
    """Whether a node asks for sizes of a tensor other than the number of its channels."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return node.args[1] in (0, 2, 3, 4)
    return _is_shape(node) and all(
        user.target is operator.getitem and user.args[1] in (0, 2, 3, 4) for user in node.users
    )


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is getattr and node.args[1] == "shape"
    return node.op == "call_method" and node.target == "size" and len(node.args) == 1


def _same(book: Book, _node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    """Each position by itself; channels stay what they are."""
    del book
    return args[0] if args and isinstance(args[0], Value) else None


def _spatial(book: Book, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Positions of a map among themselves, channel by channel."""
    value = _same(book, node, args, kwargs)
    return None if value is None or value.last else value


def _pooled(book: Book, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """A pool that gives one tensor (with indices it gives two)."""
    if kwargs.get("return_indices"):
        return None
    module = book.modules.get(str(node.target)) if node.op == "call_module" else None
    several = getattr(module, "return_indices", False)
    return None if several else _spatial(book, node, args, kwargs)


def _convolution(book: Book, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
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


def _linear(book: Book, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    path = str(node.target)
    maker: Any = makes(book.modules[path])
    reader: Any = reads(book.modules[path])
    value = args[0] if args and isinstance(args[0], Value) and args[0].last else None
    made = Value(book.make(path, maker.out_features), value.rank if value else 0, last=True)
    _reads(book, path, args, value, reader.in_features)
    return made


def _factored(book: Book, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Two factors in place of a layer make and read what it did."""
    linear = isinstance(makes(book.modules[str(node.target)]), nn.Linear)
    return (_linear if linear else _convolution)(book, node, args, kwargs)


def _reads(book: Book, path: str, args: Sequence[Any], value: Value | None, width: int) -> None:
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
    if rest or (value.spread != SAME and times != 1):
        return None
    return [variable for variable in value.flow for _ in range(times)]


def _carried(book: Book, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
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


def _grouped(book: Book, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """GroupNorm: channels that are normalised together go together."""
    value = _carried(book, node, args, kwargs)
    if value is None:
        return None
    size = len(value.flow) // book.modules[str(node.target)].num_groups  # type: ignore[operator]
    firsts = [value.flow[i // size * size] for i in range(len(value.flow))]
    book.unite(firsts, value.flow)
    return value


def _prelu(book: Book, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    single = book.modules[str(node.target)].num_parameters == 1
    return (_same if single else _carried)(book, node, args, kwargs)


def _flattened(value: Any) -> Value | None:
    """Maps (B, C, ...) as rows (B, C * positions)."""
    if not isinstance(value, Value) or value.spread != 1:
        return None
    if value.rank == 2:
        return value
    return None if value.last else Value(value.flow, 2, last=True, spread=SAME)


def _flatten_layer(book: Book, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    layer: Any = book.modules[str(node.target)]
    return _flattened(args[0]) if (layer.start_dim, layer.end_dim) == (1, -1) else None


def _flatten(book: Book, _node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    del book
    start = kwargs.get("start_dim", args[1] if len(args) > 1 else 0)
    end = kwargs.get("end_dim", args[2] if len(args) > 2 else -1)
    return _flattened(args[0]) if (start, end) == (1, -1) else None


def _view(book: Book, node: fx.Node, args: Sequence[Any], _kwargs: Any) -> Value | None:
    """Only flattening: ``x.view(x.size(0), -1)`` or ``x.view(-1, a number)``."""
    del book
    shape = node.args[1:]
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    if len(shape) != 2:
        return None
    rows, features = shape
    batch = isinstance(rows, fx.Node) and _is_batch_size(rows, node.args[0])
    fits = (batch and features == -1) or (rows == -1 and isinstance(features, int))
    return _flattened(args[0]) if fits else None


def _is_batch_size(node: fx.Node, of: object) -> bool:
    if node.op == "call_method" and node.target == "size":
        return node.args[0] is of and node.args[1:] == (0,)
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    shape = node.args[0]
    return isinstance(shape, fx.Node) and _is_shape(shape) and shape.args[0] is of


def _averaged(book: Book, _node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Mean over all positions of a map."""
    del book
    value = args[0] if args and isinstance(args[0], Value) and not args[0].last else None
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    if value is None or dims is None:
        return None
    given = [dims] if isinstance(dims, int) else list(dims)
    if sorted(d % value.rank for d in given) != list(range(2, value.rank)):
        return None
    return value if keep else Value(value.flow, 2, last=True)


def _together(book: Book, _node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
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


def _divided(book: Book, node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """By a number only: a masked channel would become 0 / 0."""
    by_number = len(args) == 2 and isinstance(args[1], int | float)
    return _together(book, node, args, kwargs) if by_number else None


def _beside(book: Book, _node: fx.Node, args: Sequence[Any], kwargs: Any) -> Value | None:
    """Concatenation along the channels."""
    del book
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
_CARRYING = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)  # fmt: skip

MODULES: dict[type[nn.Module], Step] = {
    **dict.fromkeys(_POINTWISE_LAYERS, _same),
    **dict.fromkeys(_SPATIAL_LAYERS, _spatial),
    **dict.fromkeys(_POOLS, _pooled),
    **dict.fromkeys(_CARRYING, _carried),
    nn.GroupNorm: _grouped,
    nn.PReLU: _prelu,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    nn.Linear: _linear,
    Factored: _factored,
    nn.Flatten: _flatten_layer,
}

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

FUNCTIONS: dict[Any, Step] = {
    **dict.fromkeys(_POINTWISE, _same),
    **dict.fromkeys(_SPATIAL, _spatial),
    **dict.fromkeys(_POOLING, _pooled),
    **dict.fromkeys(_TOGETHER, _together),
    operator.truediv: _divided,
    torch.div: _divided,
    torch.flatten: _flatten,
    torch.mean: _averaged,
    torch.cat: _beside,
}

METHODS: dict[str, Step] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone"), _same),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_"), _together),
    "div": _divided,
    "flatten": _flatten,
    "mean": _averaged,
    **dict.fromkeys(("view", "reshape"), _view),
}
