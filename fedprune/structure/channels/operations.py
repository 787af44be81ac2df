"""Follows a traced graph: which channels meet in which layers.

Whatever operation is in no table (`layers`, `functions`) fixes the channels it
meets, so that they are never cut; so do the network's inputs and outputs.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from fedprune.structure.channels.flow import Propagate, Trace, Value
from fedprune.structure.channels.functions import FUNCTIONS, TENSOR_METHODS, is_shape
from fedprune.structure.channels.layers import MODULES
from fedprune.structure.layer_kinds import plain_kind


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
