"""Clients with known data, the model they were sent, a question, and what one of them sends."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.attacks.quantities import QUANTITIES, Quantity
from fedprune.client.host import Host, build_host
from fedprune.client.partition_answers import released
from fedprune.config import configure
from fedprune.protocol.checks import check_summand
from fedprune.protocol.form import Form, fitting
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.parts import decode_answer
from fedprune.server.state import first_state
from fedprune.tasks.task import Part, Shard
from fedprune.tensors.models import load_into
from fedprune.tensors.named import Masks, Tensors, masked


@dataclass(frozen=True)
class Scene:
    """Clients, what they were sent, and what they are asked.

    An attack knows the model and the question, as the server does; it does not look at the shards.
    """

    quantity: Quantity  # what they release
    host: Host  # serves them; partition p holds the p-th part
    question: Question  # with the weights and the mask that everyone knows

    def model(self) -> nn.Module:
        """A copy of the model as it was sent."""
        model = copy.deepcopy(self.host.model)
        load_into(model, self.question.weights)
        return model

    @property
    def form(self) -> Form:
        """What an answer consists of."""
        return form_of(self.question, self.host.config, self.host.layout)

    @property
    def masks(self) -> Masks:
        """The masks of what is released, by name."""
        return fitting(self.shapes, self.question.masks)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of what is released, by name."""
        if not self.quantity.votes:
            return dict(self.form.shapes)
        return {n: self.host.layout.shapes[n] for n in self.host.layout.prunable}


def scene(
    name: str,
    parts: Sequence[Part],
    keys: Mapping[str, Any],
    *,
    weights: Tensors | None = None,
    masks: Masks | None = None,
    sparsity: float = 0.9,
) -> Scene:
    """The scene in which each part is one client's training data.

    `parts`: one a client, of equal numbers of examples. `sparsity`: of the clients' own masks, for
    votes.
    """
    quantity = QUANTITIES[name]
    examples = max(next(iter(part.values())).shape[0] for part in parts)
    few = {"clients": len(parts), "cohort": len(parts), "hosts": 1, "batch_size": examples}
    config = configure({**few, **keys, **quantity.keys})
    host = build_host(config, {p: Shard(part, part, part) for p, part in enumerate(parts)})
    state = first_state(host.model, host.layout)
    masks = state.masks if masks is None else masks
    question = Question(
        quantity.kind,
        1,
        masked(state.weights if weights is None else weights, masks),
        masks,
        score=config.score if quantity.kind == "score" else "",
        sparsity=sparsity if quantity.votes else None,
        lr=config.lr,
    )
    return Scene(quantity, host, question)


def message(scene: Scene, partition: int) -> Tensor:
    """What one client's packet holds once a server has read and checked it, flat float64."""
    form, question = scene.form, scene.question
    packet = released(scene.host, question, partition)
    given = decode_answer(packet, question, form.voters, own=form.own)
    check_summand(given.values, given.weight, given.totals, form, given.statistics)
    if not scene.quantity.votes:
        return given.values.double()
    assert given.votes is not None  # the form asks for them
    return given.votes.double()
