"""Values from texts: what a regression adds up."""

from __future__ import annotations

from torch import Tensor

SUMS = (
    "squared",
    "absolute",
    "y_squares",
    "y_shifted_squares",
    "guess_squares",
    "guess_shifted_squares",
)
"""Sums of a regression over examples: (guess - y)², |guess - y|, y², (y + 1)², guess² and
(guess + 1)². From the last four follow sums of y and of guesses without a sum that is negative."""


def value_sums(guess: Tensor, label: Tensor) -> dict[str, float]:
    """The sums named in `SUMS`, of guesses and labels (B,)."""
    guess, label = guess.detach().double(), label.double()
    apart = guess - label
    terms = (apart**2, apart.abs(), label**2, (label + 1) ** 2, guess**2, (guess + 1) ** 2)
    return {name: float(term.sum()) for name, term in zip(SUMS, terms, strict=True)}
