"""Kinds of question: what each is to the wire, the ledger, the fleet and the screen.

What a client answers to one is in `fedprune.client.answers.ANSWERS`, what its answer consists of in
`fedprune.protocol.forms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Kind:
    """One kind of question.

    Attributes:
        doing: what a client does, for the screen.
        quantity: what its values are, for the ledger and the ranges of a secure sum; "" for none.
        asks: the round's cohort (or everyone who trains), or everyone who measures.
        counts: which of the round's bytes it costs.
        weights: whether the model travels with it; else it is about data alone.
        totals_only: whether it is answered with named sums alone.
        values: the type of the values on the wire: that of changes, of statistics, or float32.
            Changes of the weights are also what is clipped and noised as such, what error feedback
            keeps the rest of, and whose size is remembered.
        flower: type of its message in Flower.
    """

    doing: str
    quantity: str = ""
    asks: Literal["cohort", "measurers"] = "cohort"
    counts: Literal["training", "evaluation"] = "training"
    weights: bool = True
    totals_only: bool = False
    values: Literal["changes", "statistics", "float32"] = "float32"
    flower: str = "train.score"

    @property
    def changes(self) -> bool:
        """Its answers change the weights."""
        return self.values == "changes"

    @property
    def own_options(self) -> Literal["changes", "metrics", "scores"]:
        """Whose clip norm and noise are those of its sums."""
        return "changes" if self.changes else "metrics" if self.totals_only else "scores"


_MEASURED: Literal["measurers"] = "measurers"

KINDS = {
    "score": Kind("scoring", "scores", values="statistics"),
    "tune": Kind("tuning", "changes", values="changes", flower="train.tune"),
    "own": Kind("choosing its own mask", "own"),
    "inputs": Kind("summing inputs", "moments"),
    "outputs": Kind("summing outputs", "moments"),
    "magnitudes": Kind("summing sizes of inputs", "moments"),
    "signals": Kind("summing what runs between layers", "moments"),
    "evaluate": Kind(
        "measuring", "metrics", _MEASURED, "evaluation", totals_only=True, flower="evaluate"
    ),
    "compare": Kind("comparing", "metrics", _MEASURED, totals_only=True, flower="evaluate"),
    "describe": Kind(
        "counting labels", "counts", _MEASURED, "evaluation", weights=False, flower="evaluate"
    ),
    "tokens": Kind("counting tokens", "counts", _MEASURED, weights=False, flower="evaluate"),
}
