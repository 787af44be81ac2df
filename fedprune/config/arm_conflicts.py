"""What does not go with baselines of clients alone, of pooled data, or of a small dense model."""

from __future__ import annotations

from fedprune.config.sections import AllOptions
from fedprune.options.conditions import Not, only
from fedprune.options.refusal import Conflict

_ALONE = ("local-only", "centralised")


def arm_conflicts(c: AllOptions) -> list[Conflict]:
    """Every possible conflict of a configuration's baselines, with whether it is one."""
    alone = next((arm for arm in c.baselines if arm in _ALONE), "")
    small = "dense-small" in c.baselines
    one = f"baseline {alone} is of one client, whose sums nothing would hide"
    real = f"baseline {alone} would need the devices' data"
    amounts = ("threshold", "target_bytes", "target_flops")
    size = "baseline dense-small has the size that --sparsity says"
    cut = "baseline dense-small begins with dense weights that it cuts"
    lone = "of one client alone no rule finds outliers"
    bare = (
        c.sparsity == 0.0
        and not c.init
        and bool({"random", "magnitude", "lottery"} & {*c.baselines})
    )
    second = "nothing is pruned, so that it would be a second dense run"
    whole = "baseline dense-small would be the whole model: nothing is pruned"
    return [
        *only(c, "local-only" in c.baselines, lone, robust="none"),
        ("baselines", bare, second, "dense, local-only, centralised"),
        *only(c, small, whole, sparsity=Not(0.0)),
        *only(c, bool(alone), one, dp="none", secure="none", response=None),
        *only(c, bool(alone), real, engine=Not("flower")),
        *only(c, small, size, schedule=Not("adaptive"), **dict.fromkeys(amounts)),
        *only(c, small, cut, init="", adapters="none"),
    ]
