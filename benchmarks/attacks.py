"""What bad clients answer in place of what they found, for `robust.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fedprune.client import partition_answers
from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.protocol.messages import Answer, Question
from fedprune.tensors.named import digest

Respond = Callable[[Question, ClientContext], Answer]
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


def absent(question: Question, given: Answer) -> Answer:
    """No change at all: what the best rule would come to, which leaves out exactly these clients.

    Raises:
        RuntimeError: asked to tune.
    """
    if question.kind == "tune":
        raise RuntimeError("left out")
    return given


NOBODY: Attack = lambda _question, given: given  # noqa: E731


ATTACKS: dict[str, Attack] = {
    "nobody": NOBODY,
    **{f"x {name}": scaled(float(name)) for name in ("-1", "-10", "1e6")},
    "inverted": inverted,
    "both": both,
    "left out": absent,
}


@contextmanager
def attacked(attack: Attack, bad: Sequence[int], honest: Respond) -> Iterator[None]:
    """Clients of this process answer by an attack, where they are bad."""

    def answered(question: Question, client: ClientContext) -> Answer:
        given = honest(question, client)
        return attack(question, given) if client.partition in bad else given

    partition_answers.answer = answered  # type: ignore[attr-defined]
    try:
        yield
    finally:
        partition_answers.answer = answer  # type: ignore[attr-defined]


def remembering() -> Respond:
    """The client's half of a round, which gives what it gave to the same model before.

    Of one configuration but for the rules: what a client tunes and measures follows from the
    question and its shard, and runs in which the same clients count ask the same.
    """
    known: dict[tuple[object, ...], Answer] = {}
    newest: list[tuple[Question, str]] = []

    def respond(question: Question, client: ClientContext) -> Answer:
        if question.kind not in {"tune", "evaluate"}:
            return answer(question, client)
        if not newest or newest[0][0] is not question:
            newest[:] = [(question, digest(question.weights) + digest(question.masks))]
        when = (question.round, question.lr) if question.kind == "tune" else (question.part,)
        key = (newest[0][1], question.kind, when, client.partition)
        if key not in known:
            known[key] = answer(question, client)
        return known[key]

    return respond
