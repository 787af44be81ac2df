"""All methods and riders by name."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_origin

from pydantic import ValidationError

from fedprune.config import RunConfig
from fedprune.config.allowed import refused
from fedprune.config.schema import with_given
from fedprune.methods import (
    adaptive,
    blend,
    calibrate,
    complement,
    depthfl,
    dispfl,
    distil,
    feddst,
    fedmap,
    fedmef,
    fedpai,
    fedprllm,
    fedpruner,
    fedrts,
    fedselect,
    fedspallm,
    fedspine,
    fedtiny,
    fjord,
    flash,
    global_mask,
    heterofl,
    lotteryfl,
    movement_pruning,
    moving,
    own_masks,
    prunefl,
    reconstruct,
    reduce,
    regrow,
    rewind,
    rigl,
    scaffold,
    server_optimizer,
    shrink,
    spafl,
    sparsyfed,
    ssfl,
    vocabulary,
    while_tuning,
    zerofl,
)
from fedprune.methods.method import Method, Rider
from fedprune.options.plugins import table_in
from fedprune.options.refusal import ConfigError, named
from fedprune.options.section import Section
from fedprune.options.values import parsed
from fedprune.selection.options import Pruning, followed_method
from fedprune.selection.schedules import schedules_of

METHODS: dict[str, Method] = {
    "global": global_mask.METHOD,
    "regrow": regrow.METHOD,
    "adaptive": adaptive.METHOD,
    "own-masks": own_masks.METHOD,
    "while-tuning": while_tuning.METHOD,
    "depthfl": depthfl.METHOD,
    "dispfl": dispfl.METHOD,
    "feddst": feddst.METHOD,
    "fedmef": fedmef.METHOD,
    "fedpai": fedpai.METHOD,
    "fedprllm": fedprllm.METHOD,
    "fedpruner": fedpruner.METHOD,
    "fedrts": fedrts.METHOD,
    "fedselect": fedselect.METHOD,
    "fedspallm": fedspallm.METHOD,
    "fedspine": fedspine.METHOD,
    "fedtiny": fedtiny.METHOD,
    "flash": flash.METHOD,
    "heterofl": heterofl.METHOD,
    "lotteryfl": lotteryfl.METHOD,
    "movement-pruning": movement_pruning.METHOD,
    "prunefl": prunefl.METHOD,
    "rigl": rigl.METHOD,
    "spafl": spafl.METHOD,
    "ssfl": ssfl.METHOD,
    "fedmap": fedmap.METHOD,
    "fjord": fjord.METHOD,
    "zerofl": zerofl.METHOD,
    "sparsyfed": sparsyfed.METHOD,
    "complement-sparsification": complement.METHOD,
}

FOLLOWING = {
    "global": "leave it out",
    "regrow": "--schedule regrow",
    "adaptive": "--schedule adaptive",
    "own-masks": "--masks union, --masks intersection",
    "while-tuning": "--score-during tune",
}
"""Methods that other options ask for, and which."""

CALIBRATE = "calibrate"  # The rider whose memory an export reads

RIDERS: dict[str, Rider] = {
    "vocabulary": vocabulary.RIDER,
    "distil": distil.RIDER,
    "scaffold": scaffold.RIDER,
    "rewind": rewind.RIDER,
    "reconstruct": reconstruct.RIDER,
    "shrink": shrink.RIDER,
    "reduce": reduce.RIDER,
    "server-optimizer": server_optimizer.RIDER,
    "blend": blend.RIDER,
    "moving": moving.RIDER,
    CALIBRATE: calibrate.RIDER,
}
"""In the order in which they act."""


def methods_of(plugin: str) -> dict[str, Method]:
    """Every method by name; a plug-in's (its table ``METHODS``) come last."""
    return {**METHODS, **table_in(plugin, "METHODS", Method)}


def method_name(config: Pruning) -> str:
    """The name of a run's method: the one given, or the one that its other options ask for."""
    assert config.method is not None  # a configuration is complete
    return config.method


def method_of(config: RunConfig) -> Method:
    """The method of a run."""
    return methods_of(config.plugin)[method_name(config)]


def method_options_of(config: RunConfig) -> Section:
    """The options of a run's method, as its type has them."""
    name, kind = method_name(config), method_of(config).options
    fields = kind.model_fields
    for key, value in config.method_options.items():
        if key not in fields:
            near = get_close_matches(key, fields, 1, 0.0)
            which = f"no such option of {name}" + (f"; nearest: {near[0]}" if near else "")
            has = ", ".join(fields) or "none, it has no options"
            raise ConfigError(f"method-options={ {key: value} }: {which}; allowed: {has}")
    given = {k: _read(k, v, fields[k].annotation) for k, v in config.method_options.items()}
    try:
        return kind(**given)
    except ValidationError as error:
        refusal = refused(error.errors()[0], fields)
        text = f"method-options={config.method_options}: {refusal}"
        raise ConfigError(text, "method-options", refusal.allowed) from None


def _read(key: str, value: Any, annotation: Any) -> Any:
    """A value as the option has it: of a list with one number, which stands there bare, a list."""
    alone = isinstance(value, int | float) and not isinstance(value, bool)
    return parsed(key, [value] if alone and get_origin(annotation) is tuple else value, annotation)


def check_method(config: RunConfig) -> None:
    """Refuse a method that there is not, or that does not go with the rest of the configuration."""
    methods, name = methods_of(config.plugin), method_name(config)
    follows = followed_method(config)
    named(("method", name), methods)
    if name in FOLLOWING and name != follows:
        raise ConfigError(
            f"method={name!r}: the other options ask for {follows}; allowed: {FOLLOWING[name]}"
        )
    options, method = method_options_of(config), method_of(config)
    _check_budget(config)
    own = [(key, *said) for key, wrong, *said in method.conflicts(config, options) if wrong]
    for key, why, allowed in (*_usual(config, method), *own):
        value = getattr(config, key.replace("-", "_"))
        raise ConfigError(f"{key}={value!r}: {why}; allowed: {allowed}", key, allowed)


def config_checked(config: RunConfig, *, resumed: bool) -> RunConfig:
    """The configuration of a run that begins or goes on, after `check_method`.

    One that goes on may give what its method does not read, which an earlier version took: it is
    as if it were not given, and every value stays as it was.
    """
    while True:
        try:
            check_method(config)
        except ConfigError as refusal:
            key = refusal.key.replace("-", "_")
            if not resumed or key not in config.given:
                raise
            config = with_given(
                config.model_copy(), {k: v for k, v in config.given.items() if k != key}
            )
        else:
            return config


def client_parts(config: RunConfig) -> tuple[float, ...]:
    """The densities of the parts that the method's clients have; none: they have the whole."""
    parts = method_of(config).parts
    return () if parts is None else parts(method_options_of(config))


def _check_budget(config: RunConfig) -> None:
    """Refuse a budget of devices that nothing follows: neither parts, nor ranks, nor steps."""
    c = config
    if c.budget == "none" or len(client_parts(c)) > 1 or len(c.ranks) > 1:
        return
    plain = not c.scaffold and c.batched == 1 and c.local_steps > 1
    if c.budget == "flops" and plain:
        return
    able = ", ".join(n for n, m in methods_of(c.plugin).items() if m.parts is not None)
    raise ConfigError(
        f"budget={c.budget!r}: clients have no parts or ranks that differ; allowed: none, --method "
        f"{able} with more than one in its --method-options, --ranks, or flops for local steps "
        "(two or more, without --scaffold and --batched)"
    )


def _usual(config: RunConfig, method: Method) -> Iterator[tuple[str, str, str]]:
    """What no method does that is named: the other ways to decide a mask, and the rest."""
    name = method_name(config)
    if method.own is not None and config.save == "best":
        yield "save", f"method {name} gives each client a model of its own", "last"
    if name in FOLLOWING:
        return
    own = f"method {name} decides masks"
    for key, usual in (("masks", "global"), ("score_during", "pass")):
        if getattr(config, key) != usual and key not in method.sets:
            yield key.replace("_", "-"), own, usual
    schedules = schedules_of(config.plugin)
    if schedules[config.schedule].chosen:
        yield "schedule", own, ", ".join(n for n, s in schedules.items() if not s.chosen)
    if method.apart and config.secure != "none":
        yield "secure", f"method {name} asks clients one by one", "none"
    if method.apart and config.dp != "none":
        yield "dp", f"method {name} asks clients one by one", "none"
    if config.epsilon is not None and "dp_noise" not in config.given:
        yield "epsilon", f"what method {name} asks follows from answers", "beside --dp-noise"


def riders_of(config: RunConfig) -> dict[str, Rider]:
    """The riders that a configuration asks for, in the order in which they act."""
    return {name: rider for name, rider in RIDERS.items() if rider.wanted(config)}


def memories_of(plugin: str) -> dict[str, type]:
    """The types of all memories by the names of their methods and riders."""
    methods = {name: method.memory for name, method in methods_of(plugin).items()}
    return methods | {name: rider.memory for name, rider in RIDERS.items()}
