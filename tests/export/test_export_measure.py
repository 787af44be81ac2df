import pytest
import torch
from torch import nn

from fedprune import TASKS
from fedprune.export.measure import (
    Forward,
    dense_values,
    eager,
    forward_of,
    operations,
    size_of,
    speedup,
    spread_of,
    timed,
    zeros_as_masks,
)
from fedprune.protocol.models import dense_model
from tests.families import EXPERTS, FACTS, QUERIES, TEXTS, family, inputs
from tests.modules import module
from tests.runs import tiny


def test_parameters_are_counted_once_and_zeros_apart():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 4), nn.BatchNorm1d(4))
    tied = nn.Linear(3, 4, bias=False)
    tied.weight = model[0].weight
    model.append(tied)
    with torch.no_grad():
        model[0].weight.fill_(1.0)[0, :2] = 0.0
        model[1].weight.fill_(1.0)
        model[1].bias.fill_(2.0)
    size = size_of(model)
    # The norm's bias starts at zero.
    assert (size.parameters, size.nonzeros) == (12 + 20 + 8, 10 + 20 + 4)
    assert size.bytes_dense == 4 * 40
    assert size.bytes_held == 4 * 40 + 4 * 8 + 8  # running statistics, and an int64 counter
    assert size_of(model.double()).bytes_held == 8 * 40 + 8 * 8 + 8
    assert zeros_as_masks(model, ["0.weight"])["0.weight"].sum() == 10
    assert dense_values(model).keys() == dict(model.named_parameters()).keys()


def by_hand(name: str, tokens: int) -> int:
    """Operations of a tiny family on two sequences, from what its layers are."""
    model = family(name).model
    rows, total = 2 * tokens, 0
    for path, m in model.named_modules():
        kind = type(m).__name__
        if isinstance(m, nn.Linear) or kind == "Conv1D":
            seen = 2 if "pooler" in path else rows
            # All experts together have two for each token, whoever they are: of one size here.
            seen = 2 * rows / EXPERTS[name] if ".experts." in path else seen
            total += 2 * seen * m.weight.numel()
    total += 2 * rows * sum(p.numel() for n, p in model.named_parameters() if "mlp.gate." in n)
    heads, size, attentions, *_ = FACTS[name]
    heads *= QUERIES.get(name, 1)
    return total + attentions * heads * 2 * 2 * (2 * tokens * tokens * size)


@pytest.mark.parametrize("name", TEXTS)
def test_operations_are_those_of_the_layers_and_of_attention(name):
    model = family(name).model
    extra = 2 * 14 * 2 * 2 if name.startswith("llama") else 0  # rotary angles: a product of its own
    found = operations(model, Forward((), inputs(name, model)))
    assert found in {by_hand(name, 7), by_hand(name, 7) + extra}


def test_a_parameter_may_go_into_a_layer_when_operations_are_counted():
    """As in DeBERTa, whose table of distances goes through a norm."""
    layers = {"table": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "last": nn.Linear(4, 3)}
    net = module(lambda self, x: self.last(x + self.norm(self.table.weight)[0]), **layers)
    net.table.weight.requires_grad_(True)
    assert operations(net, Forward((torch.ones(2, 4),), {})) == 2 * 2 * 4 * 3
    assert all(p.requires_grad for p in net.parameters())


def test_the_attention_is_as_before_afterwards():
    model = family("llama").model
    before = model.config._attn_implementation
    with eager(model):
        assert model.model.layers[0].self_attn.config._attn_implementation == "eager"
    with pytest.raises(RuntimeError, match="stop"), eager(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before != "eager"


@pytest.mark.parametrize("task", ["digits", "shakespeare", "shakespeare-restore"])
def test_the_call_of_a_task_is_caught_and_can_be_repeated(task):
    config = tiny(task=task)
    model = dense_model(config).eval()
    forward = forward_of(TASKS[task], model, config, batch=3)
    said = forward.through(model)
    logits = said if isinstance(said, torch.Tensor) else said.logits
    assert logits.shape[0] == 3
    assert not logits.requires_grad
    assert not model._forward_pre_hooks


def test_calls_take_turns_after_the_warm_up_on_the_threads_asked_for():
    log = []
    calls = {n: (lambda n=n: log.append((n, torch.get_num_threads()))) for n in "ab"}
    before = torch.get_num_threads()
    taken = timed(calls, repeats=2, warmup=1, threads=2)
    assert [n for n, _ in log] == ["a", "b"] + ["a", "b"] * 2
    assert {threads for _, threads in log} == {2}
    assert torch.get_num_threads() == before
    assert [len(t) for t in taken.values()] == [2, 2]


def test_spreads_and_ratios():
    spread = spread_of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)
    # Both calls were slow together in the middle: the ratio does not know.
    assert speedup([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]).median == 2.0
