"""The client's half of a round: from a question and a private shard to one summand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from fedprune.client.adapted import with_adapters
from fedprune.client.context import ClientContext
from fedprune.client.measurement import answer_compare, answer_evaluate
from fedprune.client.own_masks import own_pruning
from fedprune.client.personal import with_own
from fedprune.client.scoring import answer_score, answer_sums
from fedprune.client.thresholds import as_kept
from fedprune.client.tokens import token_counts
from fedprune.client.tuning import answer_tune
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.redundancy.calibration import MAGNITUDES
from fedprune.redundancy.moments import MOMENTS
from fedprune.redundancy.principal import SIGNALS
from fedprune.redundancy.reconstruction import OUTPUTS
from fedprune.scores.catalog import scores_of
from fedprune.tasks.metrics import naive_of
from fedprune.tensors.models import lend_to, load_into


def answer(question: Question, client: ClientContext) -> Answer:
    """The client's half of a round: its summand, a function of the question and its own shard."""
    if question.adapters:
        question, client = with_adapters(question, client)
    if question.regime.personal == "selected":
        question = with_own(question, client.memory)
    if question.regime.alone and question.kind != "tune":
        question = as_kept(question, client.memory, client.layout)
    if KINDS[question.kind].weights:
        own = lend_to if client.lends and _only_reads(question, client.config) else load_into
        own(client.model, question.weights)
    return ANSWERS[question.kind](question, client)


def _only_reads(question: Question, config: RunConfig) -> bool:
    """Whether nothing that the question asks for writes to the model's weights for a while."""
    if question.kind != "score" or config.adapters != "none" or config.plugin:
        return False
    passes = scores_of(config.plugin)[question.score].asks[question.ask].passes
    return passes in ("1 forward", "1 forward, 1 backward")


def _answer_own(question: Question, client: ClientContext) -> Answer:
    """The mask that this client would tune under, as flags."""
    return Answer(torch.empty(0), 1.0, {}, own_pruning(question, client)[1])


def _answer_describe(_: Question, client: ClientContext) -> Answer:
    """Sums over the labels in training and test: how often each occurs, or what the task says."""
    naive = naive_of(client.task)
    assert naive is not None  # else nobody asks
    sums = [naive.sums(part, client.config) for part in (client.shard.test, client.shard.train)]
    return Answer(torch.cat(sums).float(), 1.0, {})


def _answer_tokens(question: Question, client: ClientContext) -> Answer:
    """How often each token occurs in training and validation."""
    size = form_of(question, client.config, client.layout).values
    return Answer(token_counts(client.shard, client.task, size), 1.0, {})


ANSWERS: dict[str, Callable[[Question, ClientContext], Answer]] = {
    "score": answer_score,
    "tune": answer_tune,
    "own": _answer_own,
    "evaluate": answer_evaluate,
    "compare": answer_compare,
    "describe": _answer_describe,
    "inputs": partial(answer_sums, MOMENTS),
    "outputs": partial(answer_sums, OUTPUTS),
    "magnitudes": partial(answer_sums, MAGNITUDES),
    "signals": partial(answer_sums, SIGNALS),
    "tokens": _answer_tokens,
}
