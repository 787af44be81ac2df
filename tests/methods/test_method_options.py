"""Every option of every method changes what comes of a run."""

from typing import Any

import pytest

from fedprune.methods.catalog import METHODS as ALL
from tests.gallery import METHODS, MLP, SHAKESPEARE
from tests.runs import played, same, tiny

MANY = {"method_options": {"candidates": 8}}
SURE = {"method_options": {"threshold": 0.0}}
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
