"""What a client may be asked for, as an attack sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedprune.scores.gradients import gradient, square, taylor

_Each = Callable[[Tensor, Tensor], Tensor]
"""From a weight and a client's gradient to what is released of it, up to a factor."""


@dataclass(frozen=True)
class Quantity:
    """What a client is asked for."""

    summary: str
    keys: Mapping[str, Any]  # configuration keys that make a client release it
    signed: bool = False  # whether its values may be negative
    # what it is of a weight and a gradient; None: it is not of gradients at all
    each: _Each | None = None
    kind: str = "score"  # of the question
    votes: bool = False  # flags are released, not values
    root: bool = False  # the values are sums of squares of what the observer is after

    def of(self, w: Tensor, g: Tensor) -> Tensor:
        """What is released of a weight and a gradient, up to a factor."""
        assert self.each is not None
        return self.each(w, g)

    def check_matchable(self) -> None:
        """Raise a ValueError if it is not of gradients, so that there is nothing to match."""
        if self.each is None:
            raise ValueError("quantity=Σx²: is not of gradients; allowed: those that are")


def _product(w: Tensor, g: Tensor) -> Tensor:
    return taylor(w, g, 1).abs()


QUANTITIES: dict[str, Quantity] = {
    "change": Quantity(
        "a client's change of the weights after one step of SGD",
        {"local_steps": 1, "optimizer": "sgd", "lr": 0.1},
        signed=True,
        each=lambda w, g: -gradient(w, g, 1),
        kind="tune",
    ),
    "g": Quantity(
        "Σ g, --score gradient",
        {"score": "gradient"},
        signed=True,
        each=lambda w, g: gradient(w, g, 1),
    ),
    "|g|": Quantity(
        "|Σ g|, --score gradient --combine mean-absolute",
        {"score": "gradient", "combine": "mean-absolute"},
        each=lambda w, g: gradient(w, g, 1).abs(),
    ),
    "g²": Quantity(
        "Σ g² over examples, --score second_moment_per_example",
        {"score": "second_moment_per_example"},
        each=lambda w, g: square(w, g, 1),
        root=True,
    ),
    "|g·w|": Quantity(
        "|w·Σ g|, --score taylor --combine mean-absolute",
        {"score": "taylor", "combine": "mean-absolute"},
        each=_product,
    ),
    "Σx²": Quantity("Σ x² of inputs, --score wanda", {"score": "wanda"}, root=True),
    "votes": Quantity(
        "a client's own mask by |g·w|, --score taylor --combine votes",
        {"score": "taylor", "combine": "votes"},
        each=_product,
        votes=True,
    ),
}
