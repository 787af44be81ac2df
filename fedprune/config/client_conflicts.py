"""Choices about clients that contradict each other: who trains, who measures, baselines."""

from __future__ import annotations

from fedprune.config.sections import AllOptions
from fedprune.options.conditions import Not, only
from fedprune.options.refusal import Conflict


def client_conflicts(c: AllOptions) -> list[Conflict]:
    """Every possible conflict of choices about clients, with whether it is one."""
    return [*_selected(c), *_simulated(c), *_measured(c), *_new(c)]


def _measured(c: AllOptions) -> list[Conflict]:
    """When the model is measured, and by how many."""
    n, rounds = c.clients, c.rounds
    few, all_ = c.measure_cohort == 1, c.measure_cohort >= n
    some = f"0, or 2 to {n - 1}" if n > 2 else "0"
    return [
        ("measure-every", c.measure_every > rounds, f"rounds is {rounds}", f"1 to {rounds}"),
        ("measure-cohort", few, "of one client's loss nobody knows how far it is off", some),
        ("measure-cohort", all_, f"{n} measure, and 0 stands for all of them", some),
    ]


def _new(c: AllOptions) -> list[Conflict]:
    """Clients that never train."""
    new, most = c.newcomers > 0, c.clients - max(c.cohort, c.min_clients)
    some = f"0 to {most}, or a smaller --cohort" if most else "0, or a smaller --cohort"
    counted_on, real = "newcomers never train", "devices say themselves whether they take part"
    return [
        ("newcomers", new and c.newcomers > most, "too few are left to train", some),
        *only(c, new, counted_on, dp="none", sampling="fixed"),
        *only(c, new, real, engine=Not("flower")),
    ]


def _selected(c: AllOptions) -> list[Conflict]:
    """A selector's choice has no chance that could be counted as protection."""
    drawn, labels = "who is drawn is counted on", "labels of clients stay with them"
    return [
        *only(c, c.sampling != "fixed", f"sampling is {c.sampling}", selector="uniform"),
        *only(c, c.dp != "none", drawn, selector="uniform"),
        *only(c, c.secure != "none", labels, selector="uniform"),
    ]


def _simulated(c: AllOptions) -> list[Conflict]:
    """What goes with simulated devices, whose clock counts what clients compute on."""
    simulated, hidden = bool(c.profiles), "how much a client computes on would be hidden"
    real = "devices have a speed of their own"
    more, few = c.over_select > 1.0, "nobody is left to be faster than"
    return [
        ("over-select", more and c.cohort >= c.clients, few, "1, or a smaller --cohort"),
        *only(c, more, "more than a cohort are drawn", sampling="fixed", selector="uniform"),
        *only(c, more, "who counts is not drawn, but faster", dp="none"),
        *only(c, more, "a secure sum is over all that were asked", secure="none"),
        *only(c, simulated, real, engine=Not("flower")),
        *only(c, simulated, hidden, dp="none"),
        *only(c, simulated, hidden, secure="none"),
    ]


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
    pruned = bool({"random", "magnitude", "lottery"} & {*c.baselines})
    bare = c.sparsity == 0.0 and not c.init and pruned
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
