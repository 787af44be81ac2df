"""A model with the weights of several clients, called once for all of them.

`torch.func.vmap` carries a call of the model through with one set of weights for each client; what
it cannot follow efficiently is in `fedprune.structure.folding`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from fedprune.structure.folding import Draws, Folding
from fedprune.tensors.models import found_in


def columnwise(model: nn.Module) -> frozenset[str]:
    """The weights that a stack had better hold by columns: those of linear layers alone.

    Then neither a product nor the gradient of a weight has to be copied.
    """
    modules = found_in(model).modules
    linear = {id(m.weight) for m in modules if type(m) is nn.Linear}
    looked_up = {id(m.weight) for m in modules if isinstance(m, nn.Embedding)}
    parameters = found_in(model).parameters.items()
    return frozenset(n for n, p in parameters if id(p) in linear - looked_up)


@dataclass
class Stacked:
    """Called like the model itself, with the rows of all clients one after the other.

    Every client has as many rows. What the model is given and gives back has the rows first;
    anything else that it is given is the same for all clients, and what else it gives is None.

    Attributes:
        model: whose code runs; its own values serve where `state` has none.
        state: parameters and buffers by name, (clients, *shape).
        rows: of each client.
        draws: random numbers; None: a model that draws some fails.
        ragged: some rows fill a batch up and are nobody's.
        outputs: what it gave so far.

    Raises:
        RuntimeError: the model does what vmap cannot follow.
        Ragged: rows are nobody's, and the model looks at several together or draws for each.
        ValueError: nothing of what it gives has the rows first.
    """

    model: nn.Module
    state: Mapping[str, Tensor]
    rows: int = 0
    draws: Draws | None = None
    ragged: bool = False
    outputs: list[Any] = field(default_factory=list)

    @property
    def clients(self) -> int:
        """How many there are."""
        return next(iter(self.state.values())).shape[0]

    def __getattr__(self, name: str) -> Any:
        """What the model says of itself."""
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives, of all rows."""
        leaves, form = tree_flatten((args, kwargs))
        every = self.clients * self.rows
        ours = [
            i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.shape[:1] == (every,)
        ]
        given = [leaves[i].unflatten(0, (self.clients, self.rows)) for i in ours]
        shapes: list[Any] = []

        def one(state: dict[str, Tensor], inputs: list[Tensor]) -> list[Tensor]:
            filled = list(leaves)
            for i, x in zip(ours, inputs, strict=True):
                filled[i] = x
            args, kwargs = tree_unflatten(filled, form)
            with Folding(self.draws, self.ragged), _holding(self.model, state):
                output = self.model(*args, **kwargs)
            found, shape = tree_flatten(output)
            shapes.append((found, shape))
            return [x for x in found if isinstance(x, Tensor)]

        with warnings.catch_warnings():
            # Some operations go client by client, which costs time and is no news.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            outputs = iter(vmap(one, randomness="error")(dict(self.state), given))
        found, shape = shapes[-1]
        whole = [self._flat(next(outputs)) if isinstance(x, Tensor) else x for x in found]
        if not any(isinstance(x, Tensor) for x in whole):
            raise ValueError(f"of {self.rows} rows the model gives none of as many rows")
        self.outputs.append(tree_unflatten(whole, shape))
        return self.outputs[-1]

    def _flat(self, output: Tensor) -> Tensor | None:
        return output.flatten(0, 1) if output.shape[1:2] == (self.rows,) else None


@contextmanager
def _holding(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the model's modules hold other tensors, ties included.

    What `torch.func.functional_call` does, which takes longer than a small model.
    """
    found = found_in(model)
    names = {id(t): n for n, t in {**found.parameters, **found.buffers}.items() if n in state}
    places: list[tuple[dict[str, Any], str, Any]] = [
        (holder, key, value)
        for holder in found.holders
        for key, value in holder.items()
        if id(value) in names
    ]
    for holder, key, value in places:
        holder[key] = state[names[id(value)]]
    try:
        yield
    finally:
        for holder, key, value in places:
            holder[key] = value
