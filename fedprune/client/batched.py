"""Clients whose training and scoring are one computation: ``--batched``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.client.scoring import answer_score, sums_together
from fedprune.client.teacher import distillation_of
from fedprune.client.tuning import DROPOUT, batch_draws, starting_masks, tuned_answer, units_of
from fedprune.config import with_values
from fedprune.learning.batched import tune_together
from fedprune.learning.stacks import CommonTraining, Trainee
from fedprune.learning.steps import step_rows
from fedprune.protocol.messages import Answer, Question
from fedprune.randomness import derive
from fedprune.tasks.task import examples
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, copied

Under = tuple[Masks, Tensor | None]


def answers_together(
    question: Question, clients: Sequence[ClientContext]
) -> dict[int, Callable[[], Answer]]:
    """What gives the answers of clients that were computed at once, by partition.

    Nothing, where a question is not of this kind.

    Raises:
        Exception: whatever a client's code or data raises; it is not said whose.
    """
    if question.kind == "score":
        load_into(clients[0].model, question.weights)
        found = sums_together(question, clients)
        both = zip(clients, found or (), strict=found is not None)
        return {c.partition: partial(answer_score, question, c, sums) for c, sums in both}
    if question.kind == "tune" and not question.grow and question.regime.plain:
        answers = tuned_together(question, clients)
        return {p: partial(answers.__getitem__, p) for p in answers}
    return {}


def tuned_together(question: Question, clients: Sequence[ClientContext]) -> dict[int, Answer]:
    """What each client answers after tuning, by partition; as each does by itself, to rounding."""
    first = clients[0]
    c, task = first.config, first.task
    begun = [_begun(question, client) for client in clients]
    distillation = distillation_of(question, c, first.teacher)
    common = CommonTraining(task, question.lr, c, units_of(first), distillation)
    found = tune_together(first.model, [trainee for trainee, _ in begun], common)
    return {
        client.partition: tuned_answer(question, client, under, tuned, state)
        for client, (_, under), (tuned, state) in zip(clients, begun, found, strict=True)
    }


def _begun(question: Question, client: ClientContext) -> tuple[Trainee, Under]:
    """A client before its first step, and the masks that it tunes under."""
    own = bool(question.score) and client.config.masks != "global"
    if own:
        load_into(client.model, question.weights)
    under = starting_masks(question, client)
    start = copied(state_of(client.model)) if own else question.weights
    gen, alone = batch_draws(question, client)
    (part,) = client.moved(iter([client.shard.train]))
    steps = list(step_rows(examples(part), client.config, gen, alone=alone))
    seed = derive(client.config.seed, DROPOUT, question.round, client.partition)
    return Trainee(start, under[0], part, steps, seed), under


NEAR = {"fp32": 1e-3, "bf16": 0.1}
"""How far gradients may be apart, in parts of the largest: rounding is less, errors are more."""


def misfit(question: Question, client: ClientContext) -> str:
    """Why clients cannot train as one computation; "" where they can.

    Found with the client's examples, and with all of them but one, in a step of plain gradient
    descent, whose change is the gradient.
    """
    step = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip": 0.0}
    c = with_values(client.config, step)
    some = [replace(client, config=c), replace(client, config=c, partition=client.partition + 1)]
    if examples(client.shard.train) > 2:
        fewer = {name: t[1:] for name, t in client.shard.train.items()}
        some[1] = replace(some[1], shard=replace(client.shard, train=fewer))
    question = replace(question, lr=1.0)
    try:
        together = tuned_together(question, some)
    except Exception as error:  # of whatever kind: that of a model which is no user's error
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    for one in some:
        alone = answer(question, one).values
        apart = (together[one.partition].values - alone).abs().max()
        if not apart <= NEAR[c.precision] * alone.abs().max():
            return "its gradients are not those of each client by itself"
    return ""
