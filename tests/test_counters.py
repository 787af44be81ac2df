"""What a model counts beside its state is every client's own: no bit depends on who came before."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedprune import Shard
from fedprune.client.host import Host
from fedprune.engines.inline import inline_port
from fedprune.learning.steps import step_batches
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.structure.layout import layout_of
from fedprune.tensors.models import counters_of, state_of
from fedprune.tensors.named import copied
from tests.runs import house_of, tiny


class Normed(nn.Module):
    """BatchNorm that averages all batches so far, and a counter of the author's own."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.body = nn.Linear(64, 12)
        self.norm = nn.BatchNorm1d(12, momentum=momentum)
        self.head = nn.Linear(12, 10)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.scale *= 0.5
        return self.head(self.norm(self.body(images.flatten(1))) * self.scale)


def house_with(model: nn.Module, host: Host, rows: int) -> Host:
    shards = {
        p: Shard({k: t[:rows] for k, t in s.train.items()}, s.validation, s.test)
        for p, s in host.shards.items()
    }
    layout, counters = layout_of(model, output=("head",)), counters_of(model)
    fresh = replace(host, model=model, tuned=model, layout=layout, shards=shards)
    return replace(fresh, counters=counters)


def asked(host: Host, partitions: list[int], round_: int = 1) -> Aggregate:
    weights = copied(state_of(host.model))
    masks = {n: torch.ones_like(weights[n], dtype=torch.bool) for n in host.layout.prunable}
    question = Question("tune", round_, weights, masks, lr=0.1)
    return inline_port(host).ask(question, partitions)


@pytest.mark.parametrize("momentum", [None, 0.1])
@pytest.mark.parametrize("rows", [16, 17])
def test_a_change_does_not_depend_on_who_was_served_before(momentum, rows):
    torch.manual_seed(0)
    config = tiny(model="mlp", batch_size=8, local_steps=0, local_epochs=2)
    host = house_with(Normed(momentum), house_of(config), rows)
    start = copied(state_of(host.model))

    def total(before: list[int]) -> Tensor:
        for p in before:
            asked(host, [p])
            for name, tensor in state_of(host.model).items():
                tensor.copy_(start[name])
        aggregate = asked(host, [0])
        for name, tensor in state_of(host.model).items():
            tensor.copy_(start[name])
        assert aggregate.failures == ()
        return aggregate.total

    alone = total([])
    assert torch.equal(alone, total([1, 2])), "as in a worker of its own"
    assert torch.equal(alone, total([0]))


@pytest.mark.parametrize(("rows", "sizes"), [(16, [8, 8]), (17, [8, 9]), (18, [8, 8, 2]), (1, [1])])
def test_a_row_left_over_joins_the_batch_before_it(rows, sizes):
    config = tiny(batch_size=8, local_steps=0, local_epochs=1)
    part = {"row": torch.arange(rows)}

    def steps(**how: bool) -> list[Tensor]:
        gen = torch.Generator().manual_seed(0)
        return [batch["row"] for step in step_batches(part, config, gen, **how) for batch in step]

    joined = steps(alone=False)
    assert [len(batch) for batch in joined] == sizes
    assert torch.equal(torch.cat(joined), torch.cat(steps())), "the same rows in the same order"
