"""What methods share whose clients train under masks of their own."""

from __future__ import annotations

from collections.abc import Sequence

from fedprune.config import RunConfig
from fedprune.config.options import Engine
from fedprune.methods.method import Refusable


def apart_conflicts(config: RunConfig) -> list[Refusable]:
    """What does not go with means over the clients that hold a weight, whoever chose who does."""
    c, own = config, "clients train under masks of their own"
    return [
        ("robust", c.robust != "none", "clients' changes are of different weights", "none"),
        ("average", c.average is not None, "each weight is averaged over its holders", "leave out"),
        ("error-feedback", c.error_feedback, "what was kept back is of another part", "false"),
        ("scaffold", c.scaffold, own, "false"),
        ("blend", c.blend != "none", own, "none"),
    ]


def part_conflicts(
    parts: Sequence[float], are: str, untrained: str = "", allowed: str = "1.0 among them"
) -> list[Refusable]:
    """Parts that are none, or of which none is the whole where the rest would be `untrained`."""
    wrong = not parts or not all(0 < p <= 1 for p in parts)
    narrow = bool(untrained) and not wrong and max(parts) < 1
    none = ("method-options", wrong, are, "above 0 to 1")
    return [none, ("method-options", narrow, untrained, allowed)]


def depth_conflicts(config: RunConfig, depths: Sequence[float]) -> list[Refusable]:
    """What does not go with clients that train some of the blocks, of so many depths."""
    c, untrained = config, "some blocks would never be trained"
    return [
        *part_conflicts(depths, "depths are parts of the blocks", untrained),
        ("schedule", c.schedule == "regrow", "clients train blocks that stay", "cubic"),
        ("reduce", bool(c.reduce), "clients train parts of their own", "leave it out"),
        ("adapters", c.adapters != "none", "parts of the weights are trained", "none"),
        *apart_conflicts(c),
    ]


def tier_of(tiers: Sequence[int], partition: int, many: int) -> int:
    """Which of so many parts of the model a client has: by its device, or in turn.

    `tiers`: as `fedprune.server.plan.Plan.tiers`.
    """
    return tiers[partition] if tiers else partition % many


NO_STATISTICS = ("score_wire", "score_examples", "score_cohort", "combine", "normalise")
"""Options of evidence that a method without statistics does not read."""

NO_PRUNING = (
    *("score", "scope", "unit", "pool", "min_density", "max_density", "floor", "score_weighting"),
    *("schedule", "frequency", "score_steps", *NO_STATISTICS),
)
"""Options that a method which removes nothing does not read."""


def unpruned(config: RunConfig, why: str) -> list[Refusable]:
    """What was given of options that a method which removes nothing does not read.

    With ``--baselines`` the other arms begin after the warm-up, and the mean of ``--moving swa``
    begins at the end.
    """
    unread = {"warmup": not config.baselines, "end": config.moving != "swa"}
    return not_read(config, [*NO_PRUNING, *(key for key, idle in unread.items() if idle)], why)


def asked_alone(config: Engine) -> Refusable:
    """That clients of models of their own are not computed at once: each is asked by itself."""
    return ("batched", config.batched > 1, "each client's model is asked for by itself", "1")


def not_read(config: RunConfig, keys: Sequence[str], why: str) -> list[Refusable]:
    """What was given of options that a method does not read."""
    return [(key.replace("_", "-"), key in config.given, why, "leave it out") for key in keys]
