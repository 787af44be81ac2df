"""What a client sends of a change and what it keeps: what was not sent, and its control variate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedprune.client.host import Host
from fedprune.client.memory import Recollection
from fedprune.client.tuning import VARIATE
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.learning.variates import own_variate, parameters_in
from fedprune.protocol.choice import Wanted, chosen
from fedprune.protocol.messages import Answer, Question
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Tensors, count_kept, gathered, scattered

RESIDUAL = "residual"
"""What error feedback remembers.

Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2: the client
sends C(d + e) and keeps e = d + e - C(d + e). So the sum of all it sent and what it keeps is the
sum of all it meant.
"""


def remember_change(
    host: Host, question: Question, own: Recollection, meant: Answer, given: Answer
) -> None:
    """Keep what follows from a change: what was not sent of it, and the client's control variate.

    `meant`: its answer. `given`: as the server understands it.
    """
    c = host.config
    if not KINDS[question.kind].changes:
        return
    if c.error_feedback:
        own.keep(RESIDUAL, _by_name(question, meant.values - given.values))
    if c.scaffold:
        moved = parameters_in(_by_name(question, given.values), host.layout.statistics)
        span = c.local_steps * question.lr
        before = own.recall(VARIATE)
        own.keep(VARIATE, own_variate(before, question.given, moved, question.masks, span))


def _by_name(question: Question, flat: Tensor) -> Tensors:
    """A change of the weights, or what was not sent of one."""
    if question.adapters:
        return scattered(flat, shapes_of(question.adapters), {})
    return scattered(flat, shapes_of(question.weights), question.changed_on)


def with_kept_back(answer: Answer, question: Question, own: Recollection) -> Answer:
    """A change with what was kept back before, but for weights that were removed since."""
    before = own.recall(RESIDUAL)
    if not before:
        return answer
    return replace(answer, values=answer.values + gathered(before, question.changed_on))


def on_own_choice(answer: Answer, question: Question, config: RunConfig, layout: Layout) -> Answer:
    """The answer with its own mask, of the largest weights or of the largest changes.

    By what it would send whole, so with what it kept back before.
    """
    regime = question.regime
    if not regime.chosen:
        return answer
    masks = question.changed_on
    alive = masks or {n: torch.ones_like(m) for n, m in question.masks.items()}
    if round(regime.share * layout.whole) >= count_kept(alive):
        return replace(answer, votes=torch.ones(count_kept(alive), dtype=torch.bool))
    moved = scattered(answer.values, shapes_of(question.weights), masks)
    sizes = {n: moved[n] for n in alive}
    if regime.sends == "weights":
        sizes = {n: question.weights[n] + m for n, m in sizes.items()}
    sizes = {n: s.abs() for n, s in sizes.items()}
    wanted = Wanted(1.0 - regime.share, config.scope)
    own = chosen(sizes, wanted, config, layout, alive, sizes)
    return replace(answer, votes=gathered(own, masks))
