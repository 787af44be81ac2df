"""What rules make of 6 Byzantine clients of 20: overlap of masks and quality, beside a clean run.

    python benchmarks/robust.py [--task digits] [--seeds 0 1 2] [--rounds 8] [--clients 20]

Every client is asked in every round, and three of ten send something else than they found, always
in the form of the question. Overlap is the part of the clean run's kept weights that are kept too,
quality the test metric less the clean run's, in points; the clean run is that of the same seed
with `--combine sum --robust none` and nobody Byzantine. Mean over seeds, and smallest to largest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedprune import federate, hosts
from fedprune.answering import answer
from fedprune.config import RunConfig, configure
from fedprune.federation import NoRoundCompleted, Result
from fedprune.messages import Answer, Question
from fedprune.randomness import generator
from fedprune.seats import Seat
from fedprune.tensors import count_kept

Keys = dict[str, Any]
Attack = Callable[[Question, Answer], Answer]


def scaled(factor: float) -> Attack:
    """Changes times a factor, as far as float32 goes."""

    def attack(question: Question, given: Answer) -> Answer:
        return replace(given, values=given.values * factor) if question.kind == "tune" else given

    return attack


def inverted(question: Question, given: Answer) -> Answer:
    """What is scored highest lowest, a thousand times as loud (ranks have their range, votes 1)."""
    if question.kind != "score":
        return given
    votes = None if given.votes is None else _other_votes(given.votes)
    return replace(given, values=_upside_down(given.values), votes=votes)


def _upside_down(values: Tensor) -> Tensor:
    if not values.numel():
        return values
    turned = values.abs().max() - values.abs()
    return turned if values.min() > 0 and values.max() == 1 else 1000.0 * turned  # ranks


def _other_votes(votes: Tensor) -> Tensor:
    """As many votes, first for all that would go."""
    order = votes.float().argsort(stable=True)
    out = torch.zeros_like(votes)
    out[order[: int(votes.sum())]] = True
    return out


def both(question: Question, given: Answer) -> Answer:
    """Scores upside down and changes times -10."""
    return inverted(question, scaled(-10.0)(question, given))


NOBODY: Attack = lambda _question, given: given  # noqa: E731
ON_CHANGES = {"nobody": NOBODY, "x -1": scaled(-1.0), "x -10": scaled(-10.0), "x 1e6": scaled(1e6)}
ON_SCORES = {"nobody": NOBODY, "inverted": inverted}
RULES: list[tuple[Keys, dict[str, Attack]]] = [
    *[
        ({"robust": rule}, ON_CHANGES)
        for rule in (
            *("none", "median", "trimmed-mean", "clipped-mean"),
            *("geometric-median", "multi-krum"),
        )
    ],
    *[
        ({"combine": rule}, ON_SCORES)
        for rule in ("sum", "rank-mean", "median", "trimmed-mean", "clipped-mean", "votes")
    ],
    *[
        ({"combine": combine, "robust": rule}, {"both": both})
        for combine, rule in (
            *(("sum", "none"), ("median", "median"), ("clipped-mean", "clipped-mean")),
            *(("median", "geometric-median"), ("rank-mean", "multi-krum")),
            ("votes", "multi-krum"),
        )
    ],
]


@contextmanager
def attacked(attack: Attack, bad: Sequence[int]) -> Iterator[None]:
    """Clients of this process answer by an attack, where they are bad."""

    def answered(question: Question, seat: Seat) -> Answer:
        given = answer(question, seat)
        return attack(question, given) if seat.partition in bad else given

    hosts.answer = answered  # type: ignore[attr-defined]
    try:
        yield
    finally:
        hosts.answer = answer  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Seen:
    """Of one run: kept weights that the clean run keeps too, and points of quality less its own."""

    overlap: float
    points: float


def played(config: RunConfig, attack: Attack) -> Result:
    """A run in which three of ten clients attack."""
    order = torch.randperm(config.clients, generator=generator(config.seed, "byzantine"))
    bad = order[: 3 * config.clients // 10].tolist()
    try:
        with attacked(attack, bad):
            return federate(config)
    except NoRoundCompleted as failed:
        return failed.result


def seen(result: Result, clean: Result) -> Seen:
    """A run beside the clean one."""
    masks, wanted = result.state.masks, clean.state.masks
    shared = sum(int((m & wanted[n]).sum()) for n, m in masks.items())
    return Seen(shared / count_kept(wanted), 100.0 * (quality(result) - quality(clean)))


def quality(result: Result) -> float:
    """The test metric: accuracy where there is one."""
    found = result.summary["quality"]["final"] or {}
    return float(found.get("accuracy", 0.0))


def spread(values: Sequence[float], form: str) -> str:
    """Mean, and smallest to largest."""
    mean = sum(values) / len(values)
    return f"{mean:{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Play all, and print a line of a table for each."""
    out = argparse.ArgumentParser(description=__doc__)
    out.add_argument("--task", default="digits")
    out.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    out.add_argument("--rounds", type=int, default=8)
    out.add_argument("--clients", type=int, default=20)
    given = out.parse_args()
    base = {"task": given.task, "rounds": given.rounds, "engine": "inline"}
    base |= {"clients": given.clients, "cohort": given.clients}
    clean = {s: played(configure({**base, "seed": s}), NOBODY) for s in given.seeds}
    print("| combine | robust | attack | overlap | points |\n| --- | --- | --- | ---: | ---: |")
    for keys, attacks in RULES:
        for name, attack in attacks.items():
            runs = {s: configure({**base, "seed": s, **keys}) for s in given.seeds}
            found = [seen(played(c, attack), clean[s]) for s, c in runs.items()]
            overlap = spread([f.overlap for f in found], ".2f")
            points = spread([f.points for f in found], "+.1f")
            rule = f"{keys.get('combine', 'sum')} | {keys.get('robust', 'none')}"
            print(f"| {rule} | {name} | {overlap} | {points} |", flush=True)


if __name__ == "__main__":
    main()
