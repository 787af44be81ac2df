"""How clients train and what they send in a round, where it is not the plain way.

A regime travels with the question to tune, so that clients need not know the method that asks.
What it does to the training is in `fedprune.learning.manners`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SENDS = ("kept", "complement", "weights", "changes")
"""What of a change is sent: that of all kept weights; of the removed ones alone; of the largest
trained weights; of the weights that changed most. The last two come with the client's own mask."""

PERSONAL = ("", "selected", "thresholds")
"""What of a model is a client's own, kept by it from round to round (`fedprune.client.personal`):
nothing; some weights, which it selects; all, so that thresholds of their rows alone travel."""

AS_WEIGHTS = -1.0
"""For `Regime.inputs`: as large a part as is 0 of the layer's weights."""


@dataclass(frozen=True)
class Regime:
    """A way to train; the default is the plain one.

    Attributes:
        power: a of θ in w = sign(θ)|θ|^a, whose θ the optimizer moves; 1: w itself.
        forward: part of each tensor's weights, the smallest, that counts as 0 while gradients are
            taken; all of them take the step.
        inputs: part of a layer's inputs, the smallest, that counts as 0 in the gradient of its
            weights; `AS_WEIGHTS`.
        widths: densities of nested parts, of which each step trains one at random; none: all of
            the model.
        whole: removed weights train too; they begin at 0.
        sends: one of `SENDS`.
        share: of all prunable weights, the part whose change is sent with the last two of them.
        personal: one of `PERSONAL`.
        grows: of the weights of a tensor that are not selected, the part that is after this round.
        bound: the largest part of a tensor's weights that is selected.
        steps: part of its steps that a client takes, one at least.
        penalty: factor of Σ exp(-threshold) in what a client minimises.
    """

    power: float = 1.0
    forward: float = 0.0
    inputs: float = 0.0
    widths: tuple[float, ...] = ()
    whole: bool = False
    sends: str = "kept"
    share: float = 1.0
    personal: str = ""
    grows: float = 0.0
    bound: float = 1.0
    steps: float = 1.0
    penalty: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it changes nothing."""
        return self == PLAIN_REGIME

    @property
    def own(self) -> bool:
        """Whether what is sent comes with the client's own mask."""
        return self.chosen or self.personal == "selected"

    @property
    def alone(self) -> bool:
        """Whether all weights are a client's own: then the global ones are nobody's model."""
        return self.personal == "thresholds"

    @property
    def chosen(self) -> bool:
        """Whether what is sent is chosen by its size."""
        return self.sends in ("weights", "changes")


PLAIN_REGIME = Regime()


def as_said(regime: Regime) -> dict[str, Any]:
    """What of a regime is not plain, for the head of a question."""
    return {n: x for n, x in vars(regime).items() if x != getattr(PLAIN_REGIME, n)}


def regime_in(said: Any) -> Regime:
    """The regime that a question's head says.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(said, dict) or not said.keys() <= vars(PLAIN_REGIME).keys():
        raise ValueError("regime: no such way to train")
    widths = said.get("widths", [])
    if not isinstance(widths, list) or len(widths) > 100:
        raise ValueError("regime: widths are no list of numbers")
    limits = {"power": (1.0, 10.0), "inputs": (-1.0, 1.0), "penalty": (0.0, 1e6)}
    limits |= dict.fromkeys(("forward", "share", "grows", "bound", "steps"), (0.0, 1.0))
    numbers = {
        n: _within(said.get(n, getattr(PLAIN_REGIME, n)), n, *ends) for n, ends in limits.items()
    }
    whole, sends = said.get("whole", False), said.get("sends", "kept")
    personal = said.get("personal", "")
    if not isinstance(whole, bool) or sends not in SENDS or personal not in PERSONAL:
        raise ValueError("regime: no such way to send, or to keep")
    parts = tuple(_within(w, "widths", 0.0, 1.0) for w in widths)
    return Regime(**numbers, widths=parts, whole=whole, sends=sends, personal=personal)


def _within(value: Any, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"regime: {name} is no number from {least:g} to {most:g}")
    return float(value)
