"""Every option of every method changes what comes of a run, and so does every option of runs."""

from typing import Any

import pytest

from fedprune import Result, RunConfig, federate
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.methods.catalog import FOLLOWING, check_method
from fedprune.methods.catalog import METHODS as ALL
from fedprune.options.refusal import ConfigError
from fedprune.server.watch import Watch
from tests.gallery import METHODS, MLP
from tests.runs import house_of, played

OTHER: dict[str, dict[str, Any]] = {
    "depthfl": {"depths": (1.0, 1.0)},
    "dispfl": {"exchange": 0.6, "network": "ring", "neighbours": 1, "tiers": (0.3, 0.2)},
    "feddst": {"turn": 0.2, "votes": 2},
    "fedmef": {"extrusion": 1.0, "activations": 0.6},
    "fedpai": {"masks": "server"},
    "fedprllm": {"scaled": False},
    "fedpruner": {"depths": (1.0, 1.0)},
    "fedrts": {"exchange": 0.2, "gamma": 0.1, "weight": 1.0},
    "fedselect": {"grows": 0.5, "limit": 0.3, "every": 2},
    "fedspallm": {"layers": 1.0},
    "fedspine": {"densities": (1.0, 0.7), "explore": 9.0},
    "fedtiny": {"candidates": 1, "spread": 0.01},
    "fjord": {"widths": (1.0, 0.25)},
    "flash": {"stage": "spdst", "tiers": (1.0, 0.25)},
    "heterofl": {"tiers": (1.0, 0.25)},
    "lotteryfl": {"threshold": 1.0, "rate": 0.1},
    "prunefl": {
        **{"constant": 1.0, "comm": 1e-2, "comp": 1e-3, "dec": 0.6, "half_life": 1},
        **{"initial": 1, "most": 1.0},
    },
    "rigl": {"start": "largest"},
    "spafl": {"penalty": 0.1, "ramp": 9},
    "sparsyfed": {"power": 2.0},
    "zerofl": {"send": "diff", "ratio": 0.3},
}
"""By method and option: a value that ends otherwise than the one in the gallery, or the default."""

BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("dispfl", "network"): {"cohort": 5},
    ("dispfl", "tiers"): {"sparsity": None},
    ("fedmef", "extrusion"): {"rounds": 6, "end": 6},
    ("fedspine", "explore"): {"rounds": 12, "end": 6, "clients": 3},
    ("fedtiny", "spread"): {"method_options": {"candidates": 8}},
    ("lotteryfl", "rate"): {"method_options": {"threshold": 0.0}},
}
"""What else an option needs to show."""

ALONE = [
    ("dispfl", {"network": "ring", "neighbours": 3}),
    ("fedtiny", {"candidates": 1, "spread": 0.5}),
    ("prunefl", {"dec": 0.0, "half_life": 5}),
    ("spafl", {"penalty": 0.0, "ramp": 3}),
]
"""Options of a method beside another of its options that leaves them without effect."""


def config_of(method: str, beside: dict[str, Any], **own: Any) -> RunConfig:
    """A run of five rounds of a method, or of four on language, with options of its own."""
    given = {**METHODS.get(method, {"end": 1} if "warmup" in ALL[method].sets else {}), **beside}
    own = {
        **METHODS.get(method, {}).get("method_options", {}),
        **beside.get("method_options", {}),
        **own,
    }
    language = {**given, "rounds": 4, "end": 4}
    keys = language if "task" in given else {**MLP, "clients": 5, "rounds": 5, "end": 4, **given}
    keys = {n: x for n, x in keys.items() if n not in ALL[method].sets and x is not None}
    return configure({**keys, "method": method, "method_options": own})


class Differs(Exception):
    """Breaks a run off."""


def repeated(config: RunConfig, whole: Result, *columns: str) -> Result | None:
    """A run whose rows are those of another, in these columns or all; None: it is broken off."""
    there = iter(whole.rows)

    def row(told: dict[str, Any], *_: Any) -> None:
        then = next(there)
        if any(told[name] != then[name] for name in columns or told):
            raise Differs

    try:
        return federate(config, inline_port(house_of(config)), watch=Watch(row=row))
    except Differs:
        return None


@pytest.mark.parametrize(("method", "options"), ALONE)
def test_an_option_that_another_one_leaves_without_effect_is_refused(method, options):
    sets = {"method_options": options, "warmup": None, "end": None, "sparsity": None}
    with pytest.raises(ConfigError, match=r"^method-options="):
        check_method(config_of(method, sets))


def test_every_option_of_every_method_is_here():
    has = {name: {*method.options.model_fields} for name, method in ALL.items()}
    assert {name: {*OTHER.get(name, ())} for name in has} == has


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("method", "option"), [(m, o) for m, its in OTHER.items() for o in its])
def test_an_option_changes_what_comes_of_a_run(method, option):
    beside = BESIDE.get((method, option), {})
    whole = played(config_of(method, beside))
    other = config_of(method, beside, **{option: OTHER[method][option]})
    again = repeated(other, whole, "weights_digest", "mask_digest")
    ends = [repr(r.state.memories[method]) for r in (whole, again) if r is not None]
    assert len({*ends}) == len(ends)


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

WAYS: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in sorted(ALL.keys() - FOLLOWING.keys())),
    *((m, {o: v}) for m, its in OTHER.items() for o, v in its.items() if isinstance(v, str)),
]
"""Every method, and each in the other way that it has a name for."""


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("method", "way"), WAYS)
def test_an_option_of_runs_changes_what_comes_of_one_or_is_refused(method, way):
    beside = BESIDE.get((method, next(iter(way), "")), {})
    base = config_of(method, beside, **way)
    whole, idle = played(base), []
    once = {"schedule"} if base.warmup + 1 >= base.end else set()
    few = {option for those, option in FEW if those == method}
    for option in ({*WHEN} if base.task == "shakespeare" else {*OF_RUNS}) - once - few:
        if vars(base)[option] == OF_RUNS[option]:
            continue
        try:
            other = configure({**base.model_dump(exclude_unset=True), option: OF_RUNS[option]})
            idle += [option] * (repeated(other, whole) is not None)
        except ConfigError:
            continue
    assert not idle
