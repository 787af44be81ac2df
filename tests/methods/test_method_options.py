"""Every option of every method changes what comes of a run."""

from typing import Any

import pytest

from fedprune.config import configure
from fedprune.methods.catalog import FOLLOWING, check_method
from fedprune.methods.catalog import METHODS as ALL
from fedprune.options.refusal import ConfigError
from tests.gallery import METHODS, MLP, SHAKESPEARE
from tests.runs import played, same, tiny

MANY = {"method_options": {"candidates": 8}}
SURE = {"method_options": {"threshold": 0.0}}
OFTEN = {"rounds": 12, "end": 6, "cohort": 3, "clients": 3}
LONG = {"rounds": 6, "end": 6}
OTHER: dict[str, dict[str, tuple[dict[str, Any], Any, Any]]] = {
    "depthfl": {"depths": ({}, (1.0, 0.5), (1.0, 1.0))},
    "dispfl": {
        "exchange": ({}, 0.3, 0.6),
        "network": ({"clients": 5, "cohort": 5}, "random", "ring"),
        "neighbours": ({}, 1, 2),
        "tiers": ({}, (), (0.3, 0.2)),
    },
    "feddst": {"turn": ({}, 0.5, 0.2), "votes": ({}, 1, 2)},
    "fedmef": {"extrusion": (LONG, 0.1, 1.0), "activations": ({}, 0.0, 0.6)},
    "fedpai": {"masks": ({}, "clients", "server")},
    "fedprllm": {"scaled": ({}, False, True)},
    "fedpruner": {"depths": ({}, (1.0, 0.5), (1.0, 1.0))},
    "fedrts": {"exchange": ({}, 0.4, 0.2), "gamma": ({}, 0.5, 0.1), "weight": ({}, 10.0, 1.0)},
    "fedselect": {"grows": ({}, 0.25, 0.5), "limit": ({}, 0.9, 0.3), "every": ({}, 1, 2)},
    "fedspallm": {"layers": ({}, 1.0, 0.5)},
    "fedspine": {"densities": ({}, (1.0, 0.4), (1.0, 0.7)), "explore": (OFTEN, 0.0, 9.0)},
    "fedtiny": {"candidates": ({}, 4, 1), "spread": (MANY, 0.9, 0.01)},
    "fjord": {"widths": ({}, (1.0, 0.5), (1.0, 0.25))},
    "flash": {"stage": ({}, "spdst", "jmwst"), "tiers": ({}, (1.0, 0.5), (1.0, 0.25))},
    "heterofl": {"tiers": ({}, (1.0, 0.5), (1.0, 0.25))},
    "lotteryfl": {"threshold": ({}, 0.0, 1.0), "rate": (SURE, 0.2, 0.5)},
    "prunefl": {
        "constant": ({}, 1e-3, 1.0),
        "comm": ({}, 5e-6, 1e-2),
        "comp": ({}, 9e-7, 1e-3),
        "dec": ({}, 0.3, 0.6),
        "half_life": ({}, 10_000, 1),
        "initial": ({}, 2, 1),
        "most": ({}, 0.0, 1.0),
    },
    "rigl": {"start": ({}, "random", "largest")},
    "spafl": {"penalty": ({}, 0.002, 0.1), "ramp": ({}, 1, 9)},
    "sparsyfed": {"power": ({}, 1.25, 2.0)},
    "zerofl": {"send": ({}, "diff", "weights"), "ratio": ({}, 0.1, 0.3)},
}  # fmt: skip
"""By method and option: other keys, and two values that end otherwise."""


ALONE = [
    ("dispfl", {"network": "ring", "neighbours": 3}),
    ("fedtiny", {"candidates": 1, "spread": 0.5}),
    ("prunefl", {"dec": 0.0, "half_life": 5}),
    ("spafl", {"penalty": 0.0, "ramp": 3}),
]
"""Options of a method beside another of its options that leaves them without effect."""


@pytest.mark.parametrize(("method", "options"), ALONE)
def test_an_option_that_another_one_leaves_without_effect_is_refused(method, options):
    sets = {"method_options": options, "warmup": None, "end": None, "sparsity": None}
    config = tiny(**{**METHODS[method], **sets}, method=method)
    with pytest.raises(ConfigError, match=r"^method-options="):
        check_method(config)


def test_every_option_of_every_method_is_here():
    has = {name: {*method.options.model_fields} for name, method in ALL.items()}
    assert {name: {*OTHER.get(name, ())} for name in has} == has


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("method", "option"), [(name, option) for name, options in OTHER.items() for option in options]
)
def test_an_option_changes_what_comes_of_a_run(method, option):
    keys, *values = OTHER[method][option]
    given = METHODS[method]
    if (method, option) == ("dispfl", "tiers"):
        given = {n: x for n, x in given.items() if n != "method_options"}
    base = {**(MLP if "task" not in given else SHAKESPEARE), **given, **keys, "method": method}
    others = {**given.get("method_options", {}), **keys.get("method_options", {})}
    ends = []
    for value in values:
        base["method_options"] = {**others, option: value}
        if option == "tiers" and method == "dispfl":
            base["sparsity"] = None
        ends.append(played(tiny(**base)))
    one, two = (r.state for r in ends)
    memories = one.memories[method], two.memories[method]
    alike = same(one.weights, two.weights) and same(one.masks, two.masks)
    assert not alike or repr(memories[0]) != repr(memories[1])


OF_RUNS: dict[str, Any] = {
    **{"schedule": "linear", "frequency": 2, "score_steps": 2, "batched": 2, "lr_rewind": True},
    **{"combine": "median", "weighting": "equal", "score_weighting": "equal", "server_lr": 0.5},
    **{"warmup": 2, "end": 3},
}
"""Options of any run that a method may have no use for, each with another value."""

WHEN = ("warmup", "end", "frequency")
"""Of these options the ones that language models are played with: their runs take longer."""

FEW = {("flash", "batched"): "no two of the cohort have the same tier"}
"""Where these runs are too small for an option to show."""


WAYS = [
    *((method, {}, {}) for method in sorted(ALL.keys() - FOLLOWING.keys())),
    *(
        (method, keys, {option: value})
        for method, options in OTHER.items()
        for option, (keys, *values) in options.items()
        for value in values
        if isinstance(value, str)
    ),
]
"""Every method, and each in every way that it has a name for: other keys, options of its own."""


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("method", "more", "way"), WAYS)
def test_an_option_of_runs_changes_what_comes_of_one_or_is_refused(method, more, way):
    given = METHODS.get(method, {"end": 1} if "warmup" in ALL[method].sets else {})
    own = {"method_options": {**given.get("method_options", {}), **way}} if way else {}
    given = {**given, **more, **own}
    keys = {**MLP, "clients": 5, "rounds": 5, "end": 4, **given, "method": method}
    if language := keys["task"] == "shakespeare":
        keys = {**given, "rounds": 4, "end": 4, "method": method}
    keys = {n: x for n, x in keys.items() if n not in ALL[method].sets and x is not None}
    base = configure(keys)
    plain, once, idle = played(base), base.warmup + 1 >= base.end, []
    for option, value in OF_RUNS.items():
        if (
            (language and option not in WHEN)
            or vars(base)[option] == value
            or (method, option) in FEW
            or (once and option == "schedule")
        ):
            continue
        try:
            found = played(configure({**keys, option: value}))
        except ConfigError:
            continue
        if same(found.state.weights, plain.state.weights) and _told(found) == _told(plain):
            idle.append(option)
    assert not idle


def _told(result: Any) -> list[dict[str, Any]]:
    """The rows without times."""
    return [{n: x for n, x in row.items() if "seconds" not in n} for row in result.rows]
