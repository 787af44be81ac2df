"""What privacy costs: quality against epsilon at fixed sparsity, whole runs with noise in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedprune import RunConfig, federate
from fedprune.attacks.page import Passage, Picture
from fedprune.config import configure
from fedprune.config.terms import accounting_terms_of
from fedprune.privacy.accounting_terms import SIMULATED
from fedprune.privacy.calibration import calibrated
from fedprune.privacy.release import Occasion, Release
from fedprune.tensors.named import Masks
from simulations.utility_figures import TALLEST, Cell, utility_curve, utility_table

Keys = dict[str, Any]
Tick = Callable[[], None]

SPARSITY = 0.8

TASKS: dict[str, Keys] = {
    "shakespeare": {
        **{"clients": 20, "panel": 4, "cohort": 8, "rounds": 6, "warmup": 3, "local_steps": 20},
        **{"depth": 1, "width": 32},
    },
    "digits": {
        **{"model": "mlp", "clients": 20, "panel": 4, "cohort": 8, "rounds": 12, "warmup": 6},
        **{"lr": 0.2, "local_steps": 10},
    },
}
"""Small enough to be run often. The panel of the last clients measures and does nothing else."""

UNITS: dict[str, Keys] = {
    "shakespeare": {"unit": "head-neuron", "score": "contribution", "shrink": "never"},
    "digits": {"unit": "row", "score": "taylor"},
}

METHODS: dict[str, str] = {
    "unit scores": "one score a unit, and whole units go",
    "weight scores": "one score a weight (taylor)",
    "magnitude": "by the size of the noised weights, which asks no client",
    "random": "by chance, which asks no client",
}


@dataclass(frozen=True)
class Setting:
    """What noise covers in a block of the table."""

    name: str  # in words
    keys: Keys  # of the configuration
    methods: tuple[str, ...]  # names in `METHODS`


SEEDED: Keys = {"noise_source": "seeded"}
OPEN: Keys = {"dp": "client", "dp_noise": 0.0, "dp_clip": 1e9, "allow_uncovered": True}

SCORES_ONLY = Setting(
    "clients' scores alone",
    {**OPEN, "cohort": 16, "schedule": "one-shot"},
    ("unit scores", "weight scores", "random"),
)

COVERED = (
    Setting("clients, all", {"dp": "client", "dp_clip": 0.3}, ("unit scores", "weight scores")),
    Setting(
        "examples, all",
        {"dp": "example", "dp_clip": 1.0, "clip": 0.0},
        ("unit scores", "weight scores", "magnitude", "random"),
    ),
)


def utility_findings(
    task: str, seeds: Sequence[int], epsilons: Sequence[float], tick: Tick = lambda: None
) -> tuple[list[Passage], dict[str, Any]]:
    """The section about what privacy costs, and its figures.

    `epsilons`: budgets, at delta 1e-5.
    """
    cells = [*_scores_only(task, seeds, epsilons, tick), *_covered(task, seeds, epsilons, tick)]
    metric = "perplexity" if task == "shakespeare" else "accuracy"
    title = f"Quality against epsilon ({task}, sparsity {SPARSITY:.0%})"
    beyond = f" Perplexities above {TALLEST:g} are not drawn." if metric == "perplexity" else ""
    picture = Picture(f"epsilon-{task}", title, CAPTION + beyond, utility_curve(cells, metric))
    section = Passage(title, READING, utility_table(cells, metric), (picture,))
    return [section], {"task": task, "metric": metric, "cells": [vars(c) for c in cells]}


READING = (
    "Whole runs, of a model that starts untrained. In the first block noise is on what clients "
    "send for scores and on nothing else: it shows what a mask costs, and the run as a whole is "
    "not private. In the others everything that is released is covered; epsilon is then that of "
    "the whole run, whose noise was chosen to spend it.",
    "Overlap is the part of the weights kept without noise that is kept with it, before anything "
    "else differs; by chance it is 20 %. Quality is measured on clients that are not protected and "
    "take no part (--panel), so that it costs no epsilon. " + SIMULATED.capitalize() + ".",
)


CAPTION = "Quality at the end over seeds: mean, and the standard deviation as a bar."


def _scores_only(
    task: str, seeds: Sequence[int], epsilons: Sequence[float], tick: Tick
) -> list[Cell]:
    cells = []
    for method in SCORES_ONLY.methods:
        plain = {s: _run(_config(task, SCORES_ONLY, method, s, 0.0), tick) for s in seeds}
        cells.append(
            Cell(SCORES_ONLY.name, method, None, 0.0, [quality for quality, _, _ in plain.values()])
        )
        for epsilon in () if method == "random" else epsilons:
            z = noise_for_one(epsilon)
            runs = {s: _run(_config(task, SCORES_ONLY, method, s, z), tick) for s in seeds}
            overlaps = [_overlap(runs[s][1], plain[s][1]) for s in seeds]
            spent = max(spent for _, _, spent in runs.values())
            quality = [quality for quality, _, _ in runs.values()]
            cells.append(Cell(SCORES_ONLY.name, method, epsilon, spent, quality, overlaps))
    return cells


def _covered(task: str, seeds: Sequence[int], epsilons: Sequence[float], tick: Tick) -> list[Cell]:
    cells = []
    for setting in COVERED:
        for method in setting.methods:
            for epsilon in epsilons:
                keys = {"epsilon": epsilon}
                runs = [_run(_config(task, setting, method, s, None, keys), tick) for s in seeds]
                spent = max(spent for _, _, spent in runs)
                quality = [quality for quality, _, _ in runs]
                cells.append(Cell(setting.name, method, epsilon, spent, quality))
    return cells


def _config(
    task: str, setting: Setting, method: str, seed: int, z: float | None, more: Keys | None = None
) -> RunConfig:
    decides: Keys = {
        "unit scores": UNITS[task],
        "weight scores": {"score": "taylor"},
        "magnitude": {"score": "magnitude"},
        "random": {"score": "random"},
    }[method]
    noise = {} if z is None or method == "random" else {"dp_score_noise": z}
    keys = {"task": task, "engine": "inline", "sparsity": SPARSITY, "seed": seed, **TASKS[task]}
    return configure({**keys, **SEEDED, **setting.keys, **decides, **noise, **(more or {})})


def noise_for_one(epsilon: float, delta: float = 1e-5) -> float:
    """The noise multiplier with which one release of everybody's sum costs so much."""
    release = Release("scores", (), unit="client", mechanism="gaussian", z=1.0, covered=True)
    occasion = Occasion("pruned", 1, "score", 0, "cohort", (0, 1), 2)
    keys = {"task": "digits", "model": "mlp", "clients": 2, "dp": "client", "dp_noise": 1.0}
    terms = accounting_terms_of(configure({**keys, "epsilon": epsilon, "delta": delta}))
    return float(calibrated(terms, [(occasion, (release,))]))


def _run(config: RunConfig, tick: Tick) -> tuple[float, Masks, float]:
    """Quality, mask, and the epsilon of what is covered."""
    result = federate(config)
    tick()
    final = result.summary["quality"]["final"]
    name = "perplexity" if config.task == "shakespeare" else "accuracy"
    privacy = result.summary["privacy"]
    return float(final[name]), result.state.masks, float(privacy["epsilon"])


def _overlap(masks: Masks, others: Masks) -> float:
    both = sum(int((m & others[n]).sum()) for n, m in masks.items())
    return both / max(1, sum(int(m.sum()) for m in others.values()))
