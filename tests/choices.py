"""The choices of the schema as factors: every option that is a choice, and numbers that switch."""

import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

from fedprune import RunConfig, opening
from fedprune.config import configure
from fedprune.config.rules import names_of
from fedprune.learning.preparation import prepared
from fedprune.options.values import parsed
from fedprune.protocol import models
from fedprune.protocol.models import dense_model
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.structure.layout import layout_of
from fedprune.tasks.catalog import tasks_of

FIELDS = RunConfig.model_fields
BASE = {
    **{"task": "digits", "model": "mlp", "engine": "inline", "clients": 4, "cohort": 3, "hosts": 2},
    **{"rounds": 2, "local_steps": 1, "batch_size": 4, "score_batch": 64, "sparsity": 0.25},
}


def spelled(text: str) -> dict[str, Any]:
    """Keys and values, as on the command line but for the dashes before them."""
    pairs = (word.split("=") for word in text.split())
    return {k: parsed(k, v, FIELDS[k].annotation) for k, v in pairs}


EXCLUDED = {
    "task": "together with its models, as the factor model",
    "engine": "the same bits in all of them, which tests/test_engines.py holds",
    "compile": "a minute a run; tests/learning/test_local_training.py has it",
    "track": "who else is told; tests/report/test_tracking.py",
    "verbose": "how much Flower and Ray write",
    "method": "follows from schedule, masks and score_during, which are; others: tests/methods",
    **dict.fromkeys(("plugin", "init", "teacher", "data", "profiles"), "a file or a folder"),
    **dict.fromkeys(("out", "ray_address"), "a place"),
    "gradient_blocks": "of models with blocks alone; tests/streaming",
    "stream": "of models in files alone; tests/streaming",
    "base": "of models in files alone; tests/engines/flower/test_held_weights.py",
    "encoding": "how a file is written",
    "budget": "of simulated devices; tests/server/test_simulated_fleet.py",
    **dict.fromkeys(
        ("text_column", "label_column", "target_column", "client_column"), "names in a file"
    ),
}
"""Choices that are no factor, and why."""

SWITCHES = spelled(
    """
    threshold=1e-4 target_bytes=9000 target_flops=0.5 min_density=0.05 max_density=0.9 warmup=1
    frequency=2 floor=0 score_steps=2 trim=0.2 byzantine=1 max_norm=10000.0 strikes=2
    newcomers=1 accumulate=2 batched=2 local_epochs=1 proximal=0.1 l1=1e-4 l2=1e-4 group_lasso=1e-4
    distil=0.5 distil_hidden=0.5 distil_attention=0.5 server_lr=0.5 reduce_within=0.1 slice_part=0.1
    rank_energy=0.8 rank_budget=0.5 rank_tolerance=0.5 dp_score_clip=1.0 panel=1 response=1.0
    rewind=0 score_examples=3 score_cohort=2 defence=0.2
    """
)
"""Numbers that switch something on, or to another way of doing it."""

BESIDE: dict[tuple[str, Any], dict[str, Any]] = {
    ("local_epochs", 1): {"local_steps": 0, "batch_size": 64},
    ("scope", "patterns"): {"layers": {"*": 0.3}},
    ("split", "natural"): {"client_column": "client"},
    ("unit", "n:m"): {"sparsity": 0.5},
    ("robust", "multi-krum"): {"clients": 6, "cohort": 5},
    ("dp", "client"): {"dp_noise": 1.0},
    ("dp", "example"): {"dp_noise": 1.0},
    ("blend", "global"): {"blend_grid": (0.5, 1.0)},
    ("blend", "layer"): {"blend_grid": (0.5, 1.0)},
    ("unit", "layer"): {"sparsity": 0.5},
    ("slice_part", 0.1): {"reduce": ("slice",), "unit": "neuron"},
    ("unit", "expert"): {"sparsity": 0.3},
    ("schedule", "regrow"): {"end": 2},
    **{
        (key, SWITCHES[key]): {"sparsity": None}
        for key in ("threshold", "target_bytes", "target_flops")
    },
}
"""What of the base does not go with a choice, or what it needs that is no choice."""


def factors(data: Path) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Every choice with its values, as the keys that they set; the first one sets nothing.

    Args:
        data: a file for the tasks of the user's own data.
    """
    blank, names = configure(BASE), names_of("")
    out = {"model": _models(data)}
    for key, field in FIELDS.items():
        if key in EXCLUDED or key in out:
            continue
        words = _choices(field.annotation) or names.get(key, ())
        values = [*words, *([SWITCHES[key]] if key in SWITCHES else [])]
        others = [value for value in values if value != vars(blank)[key]]
        if others:
            out[key] = ({}, *({key: v, **_beside(key, v)} for v in others))
    return out


def _beside(key: str, value: Any) -> dict[str, Any]:
    return next((more for (k, v), more in BESIDE.items() if k == key and v == value), {})


def chosen_by_name() -> set[str]:
    """The options whose value is a choice: words of a table, words of the schema, or a flag."""
    kinds = {key: field.annotation for key, field in FIELDS.items()}
    return {key for key, kind in kinds.items() if _choices(kind) or str in _kinds(kind)}


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _choices(annotation: Any) -> list[Any]:
    out: list[Any] = []
    for kind in _kinds(annotation):
        if kind is bool:
            out += [False, True]
        if typing.get_origin(kind) is typing.Literal:
            out += typing.get_args(kind)
        if typing.get_origin(kind) is tuple:
            out += [(value,) for value in _choices(typing.get_args(kind)[0])]
    return out


def _models(data: Path) -> tuple[Mapping[str, Any], ...]:
    """Every family once, in the first task that has it and reads no package of its own."""
    found: dict[str, Mapping[str, Any]] = {str(BASE["model"]): {}}
    for task, its in tasks_of("").items():
        for model in its.models if task == "digits" or (its.columns and its.folder) else ():
            keys = {"task": task, "model": model}
            if model in SMALL_MODELS:
                keys |= {"depth": 2, "width": 16}
                keys |= {} if task == "digits" else {"data": str(data), "length": 8}
            found.setdefault(model, keys)
    return tuple(found.values())


def refusal_of(
    row: Mapping[str, int], found: Mapping[str, tuple[Mapping[str, Any], ...]]
) -> tuple[str, str] | None:
    """The key that the refusal of these values names, with its line; None: a run would begin."""
    try:
        config = configure(given(row, found))
        if (config.score, config.unit) == ("ablation", "weight"):
            return "score", "minutes: a pass for every weight; test_ablation.py has it"
        _begin(config)
    except ValueError as error:
        line = str(error)
        return line.partition("=")[0].partition(":")[0].replace("-", "_"), line
    return None


LOOKED_AT = (
    *("task", "model", "unit", "unit_shape", "score", "sparsity", "scope", "layers", "pool"),
    *("structure", "floor", "min_density", "max_density", "reconstruct", "vocabulary", "dp"),
    *("distil", "distil_hidden", "distil_attention", "reduce", "threshold", "target_bytes"),
    *("target_flops", "calibration", "checkpointing"),
)
"""What the look at a model before a run depends on."""

_SEEN: dict[str, Exception | None] = {}


def _begin(config: RunConfig) -> None:
    """What a run does before it asks anybody; its model and what came out are kept.

    Raises:
        ValueError: the model and the configuration do not go together.
    """
    key = repr([vars(config)[name] for name in LOOKED_AT])
    if key not in _SEEN:
        try:
            laid = patch.object(models, "layout_of", _LAYOUTS)
            with laid, patch.object(opening, "dense_model", _model_of):
                opening.opening_of(config, None, None)
            prepared(_model_of(config), config)
            _SEEN[key] = None
        except ValueError as error:
            _SEEN[key] = error
    if (error := _SEEN[key]) is not None:
        raise error


_BUILT: dict[str, nn.Module] = {}
_LAYOUTS = functools.cache(layout_of)


def _model_of(config: RunConfig) -> nn.Module:
    key = repr([config.task, config.model, config.structure])
    if key not in _BUILT:
        _BUILT[key] = dense_model(config)
    return _BUILT[key]


def given(
    row: Mapping[str, int], found: Mapping[str, tuple[Mapping[str, Any], ...]]
) -> dict[str, Any]:
    """The keys of the base and those that a row sets beside them."""
    out: dict[str, Any] = dict(BASE)
    for name, i in row.items():
        out |= found[name][i]
    return {key: value for key, value in out.items() if value is not None}


VALUES: dict[str, Any] = spelled(
    """
    ranks=2,4 task=shakespeare model=mlp split=iid score=snip scope=layer unit=row unit_shape=2,2
    schedule=one-shot combine=votes optimizer=adamw clients=4 rounds=12 cohort=3 hosts=2 warmup=2
    end=9 local_steps=3 local_epochs=1 target_bytes=9000 masks=union blend=global moving=ema
    blend_grid=0.5,1 normalise=l1 pool=max average=fedavg uplink=int8 wire=fp16 adaptive=global
    vote_scope=row secure_bits=32 panel=3 floor=2 epsilon=9.0 engine=inline structure=depgraph
    """
) | {"layers": {"*": 0.5}, "exclude": ("a,b",)}


def value_of(key: str) -> Any:
    """Some value of the key that is not its default; whether it fits is not the question."""
    if key in VALUES:
        return VALUES[key]
    field = FIELDS[key]
    kinds = _kinds(field.annotation)
    if choices := _choices(field.annotation) or list(names_of("").get(key, ())):
        return not field.default if bool in kinds else choices[-1]
    if any(typing.get_origin(kind) is dict for kind in kinds):
        return {"*": 0.5}
    return 0.3 if float in kinds else 5 if int in kinds else "x"


def values_of(key: str) -> list[Any]:
    """Values that the key can have, the default first."""
    field = FIELDS[key]
    names = _choices(field.annotation) or list(names_of("").get(key, ()))
    numbers = [0.0, 0.5] if float in _kinds(field.annotation) else []
    empty = [()] if isinstance(field.default, tuple) else []
    text = ["x"] if str in _kinds(field.annotation) and not names else []
    return [vars(configure(BASE))[key], *empty, *names, *numbers, *text]
