"""What does not go with adapters, beside which the model's own weights are frozen."""

from __future__ import annotations

from fedprune.config.defaults import method_given
from fedprune.config.sections import AllOptions
from fedprune.learning.options import trains
from fedprune.options.conditions import Not, only
from fedprune.options.refusal import Conflict
from fedprune.scores.score import Score

_METHODS = ("global", "adaptive")


def adapter_conflicts(c: AllOptions, score: Score) -> list[Conflict]:
    """Every possible conflict of a configuration's adapters, with whether it is one."""
    on = c.adapters != "none"
    frozen, apart = "the weights are frozen", "adapters are of one model and one mask for all"
    whole = "adapters are of the model's whole layers"
    mean = "no mean of factors is that of weights"
    sets = on and score.step is not None and c.sparsity != 0.0
    back, method = "what grows back would have its frozen value", method_given(vars(c))
    asked_for = method is not None and "adapters" in method.sets  # by the method itself
    coded = on and c.adapter_base != "float32"
    sums = f"what is added to frozen weights of {c.adapter_base} has no codes"
    return [
        ("adapters", on and not trains(c), "nobody trains", "none, or steps above 0"),
        ("score", sets, f"{frozen}, and {c.score} sets those that stay", "another --score"),
        *only(c, on, frozen, l1=0.0, l2=0.0, group_lasso=0.0, reconstruct=None, rewind=None),
        *only(c, on, f"{frozen}, and have no gradients while clients tune", score_during="pass"),
        *only(c, on, apart, masks="global", scaffold=False, batched=1),
        *only(c, on, back, schedule=Not("regrow")),
        *only(c, on and not asked_for, apart, method=_METHODS),
        *only(c, on, whole, shrink=("never", "end"), reduce=(), vocabulary="full"),
        *only(c, on, mean, blend="none", moving="none"),
        *_of_ranks(c),
        *only(c, coded, sums, adapter_mean=("factors", "products")),
        *only(c, coded, "codes are of the weights to their last digit", wire="fp32"),
    ]


def _of_ranks(c: AllOptions) -> list[Conflict]:
    """What does not go with factors that the server sees client by client."""
    singly = c.adapter_mean in ("products", "stack")
    many, small = bool(c.ranks), [r for r in c.ranks if not 1 <= r <= 10**5]
    less = many and c.rank != max(c.ranks, default=0)
    why = f"adapter-mean {c.adapter_mean} is of each client's own factors"
    largest = f"{max(c.ranks, default=0)}, or leave it out"
    spare = len(c.ranks) > c.clients and not c.profiles
    return [
        ("ranks", bool(small), f"no rank: {small}", "whole numbers from 1 to 100000"),
        ("ranks", spare, f"of {c.clients} clients nobody has the last", f"at most {c.clients}"),
        ("rank", less, "not the largest of --ranks", largest),
        *only(c, many, "factors of several ranks have no mean", adapter_mean=("products", "stack")),
        *only(c, singly, why, secure="none", dp=("none", "example"), robust="none"),
        *only(c, singly, "factors begin anew", error_feedback=False),
        *only(c, singly, why, server_optimizer="sgd"),
    ]
