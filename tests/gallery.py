"""Tiny runs, spread over all that can be chosen, as data. What is kept of them: `tests.digests`.

Each takes half a second or so on one core. Names of keys are those of the schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Keys = dict[str, Any]

DIGITS: Keys = {
    **{"task": "digits", "engine": "inline", "clients": 4, "cohort": 3, "hosts": 2, "alpha": 0.3},
    **{"rounds": 4, "warmup": 1, "end": 3, "local_steps": 3, "batch_size": 8},
    **{"sparsity": 0.7, "seed": 3, "lr": 0.3},
}
MLP: Keys = {**DIGITS, "model": "mlp"}
SHAKESPEARE: Keys = {
    **{"task": "shakespeare", "engine": "inline", "clients": 3, "cohort": 2, "hosts": 2},
    **{"rounds": 2, "warmup": 0, "end": 2, "local_steps": 1, "batch_size": 4, "depth": 1},
    **{"width": 32, "length": 16, "sparsity": 0.5, "seed": 1, "score_examples": 64},
}
ROWS: Keys = {
    **{"engine": "inline", "clients": 3, "cohort": 2, "hosts": 1, "rounds": 2, "warmup": 0},
    **{"end": 2, "local_steps": 2, "length": 16, "depth": 1, "width": 16, "sparsity": 0.5},
}
RECIPE: Keys = {
    **{"task": "digits", "engine": "inline", "clients": 3, "cohort": 2, "rounds": 8, "seed": 2},
    **{"local_steps": 1, "score_steps": 1},
}
NOISE: Keys = {"dp_noise": 1.0, "dp_clip": 0.3, "panel": 1, "noise_source": "seeded"}
SECAGG: Keys = {"secure": "secagg", "noise_source": "seeded"}
SCAFFOLD: Keys = {"scaffold": True, "optimizer": "sgd", "score": "magnitude"}
LORA: Keys = {"adapters": "lora", "rank": 2}
UNPRUNED: Keys = {"sparsity": 0.0, "warmup": None, "end": None}
METHODS: dict[str, Keys] = {
    "dispfl": {"warmup": 0, "end": 1, "method_options": {"exchange": 0.3}},
    "feddst": {"sparsity": 0.6},
    "fedmef": {"sparsity": 0.6},
    "fedpai": {"warmup": 0, "end": 1, "score": "snip"},
    "fedprllm": {"end": 2, "method_options": {"scaled": True}},
    "fedrts": {"schedule": "regrow"},
    "fedspallm": {"end": 2, "method_options": {"layers": 0.5}},
    "fedspine": {"ranks": (3, 1), "method_options": {"densities": (1.0, 0.4), "explore": 0.3}},
    "fedtiny": {"model": "cnn", "method_options": {"candidates": 2}},
    "flash": {"method_options": {"stage": "jmwst", "tiers": (1.0, 0.5)}},
    "heterofl": {"method_options": {"tiers": (1.0, 0.5)}, "unit": "row", "sparsity": 0.3},
    "lotteryfl": {"method_options": {"threshold": 0.2, "rate": 0.4}},
    "movement-pruning": {},
    "prunefl": {"sparsity": 0.4, "method_options": {"constant": 1e-3, "initial": 2}},
    "rigl": {},
    "fjord": {"method_options": {"widths": (1.0, 0.5)}, "unit": "channel", "sparsity": 0.3},
    "zerofl": {"method_options": {"send": "weights"}, "end": 2},
    "sparsyfed": {"scope": "layer", "end": 2},
    "complement-sparsification": {"end": 2},
    "depthfl": {**SHAKESPEARE, "depth": 2, "rounds": 3, "method_options": {"depths": (1.0, 0.5)}},
    "fedpruner": {**SHAKESPEARE, "depth": 2, "rounds": 3, "method_options": {"depths": (1.0, 0.5)}},
    "spafl": {**UNPRUNED, "method_options": {"penalty": 0.05}},
    "fedselect": {**UNPRUNED, "method_options": {"every": 1}},
}
"""Of the methods with conversations of their own; compositions by a name are among the recipes.

A key with None is left out, whatever these are put on.
"""


@dataclass(frozen=True)
class Run:
    """One of the runs.

    Attributes:
        keys: of the configuration.
        recipe: whose file they are put on top of, if any.
        rows: whether ``data`` is a file of rows made for it.
        killed: the round after which it is cut and gone on with; 0: it runs through.
        before: keys of the run that it goes on from (``init``).
        silent: (partition, round) of clients that do not answer when asked to tune.
        unscored: rounds in which nobody answers when asked for a score.
        workers: how many nodes of a Flower grid serve the partitions; 0: this process.
        quick: whether the fast suite plays it too.
    """

    keys: Keys
    recipe: str = ""
    rows: bool = False
    killed: int = 0
    before: Keys | None = None
    silent: tuple[tuple[int, int], ...] = ()
    unscored: tuple[int, ...] = ()
    workers: int = 0
    quick: bool = False


def digits(*, quick: bool = False, **keys: Any) -> Run:
    return Run({**DIGITS, **keys}, quick=quick)


def mlp(*, quick: bool = False, killed: int = 0, **keys: Any) -> Run:
    return Run({**MLP, **keys}, quick=quick, killed=killed)


def shakespeare(**keys: Any) -> Run:
    return Run({**SHAKESPEARE, **keys})


def rows(task: str, label: str, **keys: Any) -> Run:
    return Run({**ROWS, "task": task, "label_column": label, **keys}, rows=True)


def again(name: str, keys: Keys) -> dict[str, Run]:
    """A run, and the same on nodes of a grid and with a cut."""
    return {name: Run(keys), f"{name} killed": Run(keys, killed=2, workers=2)}


def _base(keys: Keys) -> Keys:
    """What a method's keys are put on: nothing, where they name a task."""
    return {} if "task" in keys else MLP


GALLERY: dict[str, Run] = {
    # scores, combinations, scopes, units and schedules
    "taylor": digits(baselines=("dense", "random")),
    "magnitude": mlp(score="magnitude", schedule="linear", min_density=0.2, quick=True),
    "wanda-rows": mlp(score="wanda", scope="row", agreement=True, quick=True),
    "fisher-votes": mlp(score="fisher", combine="votes", schedule="exponential", quick=True),
    "grasp-median": mlp(
        **{"score": "grasp", "combine": "median", "warmup": 0, "end": 1},
        **{"schedule": "one-shot", "score_wire": "log8"},
    ),
    "rank-mean": mlp(combine="rank-mean", weighting="equal", scope="layer"),
    "trimmed-mean": mlp(score="gradient", combine="trimmed-mean", frequency=2, scope="erk"),
    "second-moment": mlp(score="taylor_signed", combine="second-moment", normalise="l1"),
    "ablation-rows": mlp(score="ablation", unit="row", sparsity=0.3, score_examples=20),
    "threshold": mlp(score="magnitude", sparsity=None, threshold=0.02, end=2),
    "zeros": mlp(score="magnitude", l1=0.1, sparsity=0.3),  # more of them than have to go
    "target-bytes": digits(sparsity=None, target_bytes=9000),
    "target-flops": mlp(sparsity=None, target_flops=0.5, score="taylor_signed"),
    "patterns": mlp(scope="patterns", layers={"*": 0.5}, score="random"),
    "blocks": mlp(unit="block", unit_shape=(2, 4), score="activation", pool="max"),
    "score-steps": mlp(score_steps=3, probes=4, score="perturbation"),
    "channels-every": digits(
        **{"unit": "channel", "shrink": "every", "sparsity": 0.4, "wire": "bf16"},
    ),
    "regrow": mlp(schedule="regrow", warmup=0, rounds=3, quick=True),
    "adaptive": mlp(schedule="adaptive", blend="global", score="magnitude"),
    "adaptive-layers": mlp(schedule="adaptive", adaptive="layer", tolerance=0.3),
    # language: blocks, heads, statistics of inputs
    "heads-end": shakespeare(unit="head", sparsity=0.3, score="contribution", model="llama"),
    "neurons": shakespeare(unit="neuron", model="gpt2", score="taylor_second", shrink="every"),
    "sequential": shakespeare(
        **{"score": "wanda", "scope": "row", "calibration": "sequential", "depth": 2},
        **{"schedule": "one-shot", "end": 1, "rounds": 1, "score_cohort": "all"},
    ),
    "sparsegpt": shakespeare(
        **{"score": "sparsegpt", "schedule": "one-shot", "end": 1, "rounds": 1},
        **{"unit": "n:m", "unit_shape": (2, 4), "vocabulary": "used"},
    ),
    "wanda-by-row": shakespeare(score="wanda_by_row", scope="layer", quantise_by="awq"),
    "flap": shakespeare(score="flap", model="llama-gqa", sparsity=0.3, shrink="every", depth=2),
    "slice": shakespeare(reduce=("slice",), model="llama-tied", score_examples=None, **UNPRUNED),
    "masked-language": Run(
        {**SHAKESPEARE, "task": "shakespeare-masked", "model": "bert", "precision": "bf16"}
    ),
    "blocks-of-layers": shakespeare(unit="layer", score="block_influence", depth=3),
    "restore": Run(
        {**SHAKESPEARE, "task": "shakespeare-restore", "model": "t5", "unit": "head-neuron"}
    ),
    # how weights move
    "movement": mlp(score="movement", score_during="tune", optimizer="adam", lr=0.01),
    "union": mlp(masks="union", wire="fp16", local_steps=0, local_epochs=1),
    "intersection": mlp(masks="intersection", average="fedavg", scope="layer", score="wanda"),
    "proximal": mlp(
        **{"proximal": 0.1, "group_lasso": 1e-3, "unit": "row", "sparsity": 0.3},
        **{"momentum": 0.5, "weight_decay": 0.01, "lr_schedule": "linear", "server_lr": 0.5},
    ),
    "rewind": mlp(
        **{"rewind": 1, "lr_rewind": True, "warmup": 2, "frequency": 2, "rounds": 5, "end": 4},
        **{"moving": "swa", "score": "magnitude"},
    ),
    "distil": mlp(
        **{"distil": 0.5, "temperature": 3.0, "distil_schedule": "linear"},
        **{"moving": "ema", "moving_decay": 0.8},
        killed=3,
    ),
    "blend": mlp(blend="layer", blend_grid=(0.5, 1.0), reconstruct="outputs"),
    "low-rank": mlp(
        reduce=("dead", "merge", "low-rank"), rank_budget=0.5, reduce_round=3, killed=3
    ),
    "accumulate": mlp(
        **{"accumulate": 2, "l1": 1e-3, "l2": 1e-3, "score_wire": "fp16", "combine": "mean"},
        **{"normalise": "rank", "unit": "column", "sparsity": 0.4, "sampling": "round-robin"},
    ),
    "krum": mlp(robust="multi-krum", byzantine=1, clients=6, cohort=6, max_norm="auto"),
    # bytes, noise, secure sums
    "int8": mlp(uplink="int8", error_feedback=True, quick=True),
    "dp-client": mlp(dp="client", **NOISE, quick=True),
    "dp-client-noised-metrics": mlp(
        **{"dp": "client", "epsilon": 200.0, "metrics": "noised", "sampling": "poisson"},
        **{"score": "magnitude", "clients": 6, "noise_source": "seeded"},
    ),
    "dp-example": mlp(dp="example", **NOISE, dp_rate=0.2, score="fisher"),
    "response": mlp(combine="votes", unit="row", response=2.0, sparsity=0.3, noise_source="seeded"),
    "secagg": mlp(**SECAGG, quick=True),
    "secagg-union": mlp(**SECAGG, masks="union", secure_bits=32),
    "secagg-noise": mlp(**SECAGG, dp="client", dp_noise=1.0, metrics="noised", clients=4),
    "secagg-examples": mlp(
        **SECAGG, dp="example", dp_noise=1.0, panel=3, score="fisher", clients=6
    ),
    # adapters, where all that acts on changes acts on factors
    **again("adapters", {**MLP, **LORA, "uplink": "int8", "error_feedback": True}),
    "adapters-language": shakespeare(**LORA, score="wanda", scope="row", wire="bf16"),
    "adapters-gpt2": shakespeare(**LORA, model="gpt2", unit="head-neuron", sparsity=0.3),
    "adapters-ranks": mlp(**{**LORA, "rank": 3}, ranks=(1, 3, 1), server_lr=0.8),
    "adapters-stack": mlp(**LORA, adapter_mean="stack", rounds=5, end=4),
    "adapters-median": mlp(**LORA, robust="median", max_norm="auto", schedule="adaptive"),
    "adapters-secagg": mlp(**LORA, **SECAGG, dp="client", dp_noise=1.0, clients=4),
    "adapters-examples": mlp(**LORA, dp="example", **NOISE, dp_rate=0.2, score="fisher"),
    # methods by name, each also with a cut and on nodes of a grid
    **{
        how: run
        for name, keys in METHODS.items()
        for how, run in again(name, {**_base(keys), "method": name, **keys}).items()
    },
    # clients that remember something of their own
    "server-adam": mlp(server_optimizer="adam"),
    **again("scaffold", {**MLP, **SCAFFOLD, "rounds": 5, "end": 4}),
    **again("remembering", {**MLP, "plugin": "tests/remembering.py", "score": "moving"}),
    # engines, failures, going on
    "int8 workers": Run({**MLP, "uplink": "int8", "error_feedback": True}, workers=2),
    "workers": Run({**MLP, "uplink": "int4", "combine": "clipped-mean"}, workers=2),
    "silent": Run(
        {**MLP, "min_clients": 2, "strikes": 1},
        silent=((0, 1), (1, 1), (2, 1), (1, 3)),
    ),
    "raises": digits(
        task="failing", plugin="tests/failing_task.py", cohort=4, rounds=3, scope="erk"
    ),
    "killed": Run({**MLP, "uplink": "int8", "error_feedback": True}, killed=2),
    "killed-moving": Run(
        {**DIGITS, "unit": "channel", "shrink": "every", "sparsity": 0.4, "moving": "ema"},
        killed=2,
    ),
    "reduced-not-pruned": Run(
        {**MLP, "reduce": ("low-rank",), "reduce_round": 2, "end": 2, "sparsity": 0.9},
        unscored=(2,),
    ),
    "init": Run({**MLP, "rounds": 2, "warmup": 0, "end": 1}, before={**MLP, "sparsity": 0.4}),
    # tasks over rows of a user's own
    "regression": rows("text-regression", "value", model="bert"),
    "multi-label": rows("multi-label", "topics", model="gpt2", score="fisher"),
    "tagging": rows("token-classification", "tags", model="roberta", text_column="tokens"),
    "classes": rows("text-classification", "label", model="llama-gqa"),
}

RECIPES = (
    *("exact-wanda", "fedprllm", "fedspallm", "lottery-ticket", "priprune", "rigl", "sparsegpt"),
    *("ssfl", "synflow", "complement-sparsification", "sparsyfed", "zerofl", "fedmap"),
)
GALLERY |= {f"recipe {name}": Run(RECIPE, recipe=name) for name in RECIPES}
GALLERY["recipe fjord"] = Run({**SHAKESPEARE, "score_examples": None}, recipe="fjord")
