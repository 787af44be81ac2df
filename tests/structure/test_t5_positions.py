import torch
from cutting import Cut, cut
from families import family, forward

from fedprune.tensors.models import state_of

FIRST = "encoder.block.0.layer.0.SelfAttention"
LATER = FIRST.replace("block.0", "block.1")
TABLE = f"{FIRST}.relative_attention_bias.weight"


def without(heads: dict[str, set[int]]) -> Cut:
    f = family("t5")
    return cut(f.model, f.layout, {("head", path): units for path, units in heads.items()})


def test_the_table_keeps_all_heads_and_gets_the_gradient_of_the_masked_model():
    for gone in ({FIRST: {0, 2}, LATER: {1}}, {FIRST: {0, 1, 2}, LATER: {1}}, {FIRST: {1}}):
        it, grads = without(gone), []
        for model in (it.small, it.silent):
            assert model.get_parameter(TABLE).shape == (32, 3)
            forward("t5", model, grad=True).square().mean().backward()
            grads.append(model.get_parameter(TABLE).grad)
        assert grads[0].any()
        # Of a masked head the queries and keys are 0, but its table still turns to no effect.
        assert torch.allclose(grads[0], grads[1], atol=1e-12)


def test_a_first_attention_without_heads_goes_on_making_the_bias():
    it = without({FIRST: {0, 1, 2}})
    small, before = it.small, forward("t5", it.small)
    assert TABLE in state_of(small)
    assert f"{FIRST}.q.weight" not in state_of(small)
    with torch.no_grad():
        small.get_parameter(TABLE).mul_(3.0)
        moved = forward("t5", small)
        it.silent.get_parameter(TABLE).mul_(3.0)
    assert (moved - forward("t5", it.silent)).abs().max() <= 1e-9
    assert (moved - before).abs().max() > 1e-3


def test_a_table_that_nobody_reads_goes_and_only_then():
    it = without({FIRST: {0, 1, 2}, LATER: {0, 1, 2}})
    assert TABLE not in state_of(it.small)
    assert TABLE.replace("encoder.", "decoder.") in state_of(it.small)
    assert (forward("t5", it.small) - forward("t5", it.silent)).abs().max() <= 1e-9
