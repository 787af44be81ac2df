"""What goes with privacy and what does not, as a table to read: the refusals themselves, in words.

Nothing is decided here. `fedprune.config.rules.check_options` raises the same conflicts before
anything starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedprune.config import RunConfig
from fedprune.config.defaults import completed
from fedprune.config.privacy_conflicts import example_conflicts, noise_conflicts, response_conflicts
from fedprune.config.secure_conflicts import secure_conflicts
from fedprune.options.conditions import in_words
from fedprune.options.option import declared
from fedprune.options.refusal import Conflict
from fedprune.scores.catalog import scores_of
from fedprune.scores.score import Score

Conflicts = Callable[[RunConfig, Score], list[Conflict]]

_CASES: dict[str, tuple[dict[str, Any], Conflicts]] = {
    "dp client": ({"dp": "client", "dp_noise": 1.0}, noise_conflicts),
    "dp example": (
        {"dp": "example", "dp_noise": 1.0},
        lambda c, s: noise_conflicts(c, s) + example_conflicts(c, s),
    ),
    "response": (
        {"response": 1.0, "combine": "votes", "unit": "row"},
        lambda c, _: response_conflicts(c),
    ),
    "secure secagg": ({"secure": "secagg"}, lambda c, _: secure_conflicts(c)),
}
"""A configuration that protects something, and what lists what does not go with it."""


def matrix() -> dict[str, list[str]]:
    """By the option that protects: what is refused beside it, why, and what is allowed."""
    table = {name: _lines(*case) for name, case in _CASES.items()}
    return {n: [*lines, _BATCHNORM] if n.startswith("dp") else lines for n, lines in table.items()}


_BATCHNORM = f"{'model':<16} BatchNorm; allowed: a model without it (seen when it is built)"


def _lines(keys: dict[str, Any], conflicts: Conflicts) -> list[str]:
    config = RunConfig.model_construct(**completed({"task": "digits", "model": "mlp", **keys}))
    found = conflicts(config, scores_of("")[config.score])
    lines = [f"{key:<16} {reason}; allowed: {allowed}" for key, _, reason, allowed in found]
    says = {key: declared(RunConfig.model_fields[key]).when for key in keys}
    needs = [
        f"{key.replace('_', '-'):<16} only with {in_words(when)}"
        for key, when in says.items()
        if in_words(when)
    ]
    return list(dict.fromkeys([*needs, *lines]))
