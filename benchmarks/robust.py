"""What rules make of 6 Byzantine clients of 20: overlap of masks and quality, beside clean runs.

    python benchmarks/robust.py [--settings digits-iid digits shakespeare] [--seeds 0 1 2]
        [--parts changes scores both oracle] [--rules multi-krum ...] [--results FILE] [--show]

Every client is asked in every round, and three of ten send something else than they found, always
in the form of the question; under "left out" they send nothing, which is what a rule would come to
that knows them. The model is trained for two thirds of the rounds, pruned at once, and trained on.
Overlap is the part of the clean run's kept weights that are kept too, quality the test metric less
the clean run's, in points. There are two clean runs of the same seed, nobody Byzantine in either:
the plain one, with `--combine sum --robust none`, and the rule's own. Mean over seeds, and the
worst of them in brackets. What is in the results' file is not run again.
"""

from __future__ import annotations

import argparse
import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from at_start import lines_of
from attacks import ATTACKS, Attack, Respond, attacked, remembering

from fedprune import federate
from fedprune.client.answers import answer
from fedprune.config import RunConfig, configure
from fedprune.learning.robust_rules import ROBUST
from fedprune.randomness import generator
from fedprune.run import NoRoundCompleted, Result

Keys = dict[str, Any]


COMMON: Keys = {
    **{"engine": "inline", "clients": 20, "cohort": 20, "rounds": 20, "warmup": 14},
    **{"schedule": "one-shot", "score": "fisher", "sparsity": 0.8},
}
SMALL: Keys = {"depth": 1, "width": 32, "length": 32, "score_examples": 16}
SETTINGS: dict[str, Keys] = {
    "digits-iid": {"task": "digits", "model": "mlp", "split": "iid"},
    "digits": {"task": "digits", "model": "mlp", "split": "dirichlet", "local_steps": 30},
    "shakespeare": {"task": "shakespeare", **SMALL, "rounds": 9, "warmup": 6, "local_steps": 20},
}
"""Clients that hold much the same, clients that hold few classes each, and speaking roles."""

PLAIN = ("sum", "none")
Rules = tuple[str, str]
"""How scores are combined, and the rule for changes."""

PARTS: dict[str, tuple[list[Rules], list[str]]] = {
    "changes": ([("sum", rule) for rule in ROBUST], ["nobody", "x -1", "x -10", "x 1e6"]),
    "scores": (
        [
            *(("sum", "none"), ("rank-mean", "none"), ("median", "none")),
            *(("trimmed-mean", "none"), ("clipped-mean", "none"), ("votes", "none")),
        ],
        ["nobody", "inverted"],
    ),
    "both": (
        [
            *(("sum", "none"), ("median", "median"), ("clipped-mean", "clipped-mean")),
            *(("median", "multi-krum"), ("clipped-mean", "multi-krum"), ("votes", "multi-krum")),
        ],
        ["nobody", "both"],
    ),
    "oracle": ([PLAIN], ["nobody", "left out"]),
}


@dataclass(frozen=True)
class Ended:
    """What a run ended with: whether each prunable weight is kept, and the test metric."""

    kept: np.ndarray
    quality: float


def played(config: RunConfig, attack: Attack, honest: Respond = answer) -> Ended:
    """The end of a run in which three of ten clients attack."""
    order = torch.randperm(config.clients, generator=generator(config.seed, "byzantine"))
    bad = order[: 3 * config.clients // 10].tolist()
    try:
        with attacked(attack, bad, honest):
            result = federate(config)
    except NoRoundCompleted as failed:
        result = failed.result
    masks = result.state.masks
    return Ended(
        np.concatenate([masks[n].numpy().reshape(-1) for n in sorted(masks)]), quality(result)
    )


def quality(result: Result) -> float:
    """The test metric: accuracy where there is one."""
    found = result.summary["quality"]["final"] or {}
    return float(found.get("accuracy", 0.0))


Key = tuple[str, int, str, str, str]
"""Setting, seed, combine, robust, attack."""


def read(path: Path) -> dict[Key, Ended]:
    """What was played before."""
    out: dict[Key, Ended] = {}
    for row in lines_of(path):
        bits = np.frombuffer(b64decode(row["kept"]), dtype=np.uint8)
        kept = np.unpackbits(bits)[: row["size"]].astype(bool)
        setting, seed, *rest = row["key"]
        out[(setting, seed, *rest)] = Ended(kept, row["quality"])
    return out


def write(path: Path, key: Key, ended: Ended) -> None:
    """One line more."""
    bits = b64encode(np.packbits(ended.kept).tobytes()).decode()
    row = {"key": key, "quality": ended.quality, "size": len(ended.kept), "kept": bits}
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def config_of(setting: str, seed: int, combine: str, robust: str) -> RunConfig:
    """A run's configuration: of 20 clients, 6 are left out at either end, where any are."""
    keys = {**COMMON, **SETTINGS[setting], "seed": seed, "combine": combine, "robust": robust}
    return configure(keys | ({"trim": 0.3} if combine == "trimmed-mean" else {}))


def chosen(part: str, only: Sequence[str]) -> list[Rules]:
    """The pairs of a part in which one of these is, and the plain one; all of them if none."""
    return [p for p in PARTS[part][0] if not only or p == PLAIN or any(n in only for n in p)]


def wanted(given: argparse.Namespace) -> list[Key]:
    """The runs that are asked for, those of one setting and seed together."""
    runs = [
        (*rules, attack)
        for part in given.parts
        for rules in chosen(part, given.rules)
        for attack in PARTS[part][1]
    ]
    return [
        (setting, seed, *run) for setting in given.settings for seed in given.seeds for run in runs
    ]


def play(keys: Sequence[Key], path: Path) -> dict[Key, Ended]:
    """The runs' ends; what is in the file is taken from it, and what is played goes there."""
    done = read(path)
    where, honest = ("", -1), remembering()
    for key in keys:
        if key in done:
            continue
        setting, seed, combine, robust, attack = key
        if (setting, seed) != where:
            where, honest = (setting, seed), remembering()
        config = config_of(setting, seed, combine, robust)
        done[key] = played(config, ATTACKS[attack], honest)
        write(path, key, done[key])
    return done


def beside(ends: Sequence[Ended], clean: Sequence[Ended]) -> list[str]:
    """Overlap and points beside clean runs of the same seeds: the mean, and the worst."""
    pairs = list(zip(ends, clean, strict=True))
    if not pairs:
        return ["", ""]
    overlaps = [float((e.kept & c.kept).sum() / c.kept.sum()) for e, c in pairs]
    points = [100.0 * (e.quality - c.quality) for e, c in pairs]
    return [
        f"{sum(overlaps) / len(pairs):.2f} ({min(overlaps):.2f})",
        f"{sum(points) / len(pairs):+.1f} ({min(points):+.1f})",
    ]


def line(done: dict[Key, Ended], seeds: Sequence[int], setting: str, run: tuple[str, ...]) -> str:
    """One line of the table, over those seeds of which the runs are there; none: nothing."""
    combine, robust, attack = run

    def both_of(clean: Rules) -> list[str]:
        pairs = [
            ((setting, s, combine, robust, attack), (setting, s, *clean, "nobody")) for s in seeds
        ]
        there = [(done[k], done[c]) for k, c in pairs if k in done and c in done]
        return beside([k for k, _ in there], [c for _, c in there])

    number = sum((setting, s, combine, robust, attack) in done for s in seeds)
    cells = [setting, f"`{combine}`", f"`{robust}`", attack, *both_of(PLAIN)]
    cells += both_of((combine, robust))
    return f"| {' | '.join([*cells, str(number)])} |\n" if number else ""


HEAD = [
    *("setting", "`--combine`", "`--robust`", "attack", "overlap, plain", "points, plain"),
    *("overlap, own", "points, own", "seeds"),
]


def main() -> None:
    """Play all, and print the tables."""
    out = argparse.ArgumentParser(description=__doc__)
    out.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    out.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    out.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    out.add_argument("--rules", nargs="*", default=[], help="of --combine or --robust (all)")
    out.add_argument("--results", type=Path, default=Path("robust.jsonl"))
    out.add_argument("--show", action="store_true", help="play nothing, show what there is")
    given = out.parse_args()
    keys = wanted(given)
    done = read(given.results) if given.show else play(keys, given.results)
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for setting, *run in dict.fromkeys((setting, *run) for setting, _seed, *run in keys):
        print(line(done, given.seeds, setting, tuple(run)), end="")


if __name__ == "__main__":
    main()
