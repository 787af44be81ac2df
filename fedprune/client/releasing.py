"""Which of its changes a client sends, where it sends the largest alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedprune.config import RunConfig
from fedprune.protocol.choice import Wanted, chosen
from fedprune.protocol.messages import Answer, Question
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import count_kept, gathered, scattered


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
