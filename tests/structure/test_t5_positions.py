import copy

import torch
from cutting import masked_model, masks_of
from families import family, forward

from fedprune.structure.cuts import edits_of
from fedprune.structure.surgery import reshaped
from fedprune.tensors.models import state_of

FIRST = "encoder.block.0.layer.0.SelfAttention"
TABLE = f"{FIRST}.relative_attention_bias.weight"


def cut(gone: dict[str, set[int]]):
    f = family("t5")
    masks = masks_of(f.layout, {("head", path): units for path, units in gone.items()})
    silent = masked_model(f.model, masks)
    return reshaped(copy.deepcopy(silent), edits_of(masks, f.layout)), silent


def test_the_table_keeps_all_heads_and_gets_the_gradient_of_the_masked_model():
    later = FIRST.replace("block.0", "block.1")
    for gone in ({FIRST: {0, 2}, later: {1}}, {FIRST: {0, 1, 2}, later: {1}}, {FIRST: {1}}):
        models = cut(gone)
        grads = []
        for model in models:
            assert model.get_parameter(TABLE).shape == (32, 3)
            forward("t5", model, grad=True).square().mean().backward()
            grads.append(model.get_parameter(TABLE).grad)
        assert grads[0].any()
        # Of a masked head the queries and keys are 0, but its table still turns to no effect.
        assert torch.allclose(grads[0], grads[1], atol=1e-12)


def test_a_first_attention_without_heads_goes_on_making_the_bias():
    small, silent = cut({FIRST: {0, 1, 2}})
    assert TABLE in state_of(small)
    assert f"{FIRST}.q.weight" not in state_of(small)
    with torch.no_grad():
        small.get_parameter(TABLE).mul_(3.0)
        moved = forward("t5", small)
        silent.get_parameter(TABLE).mul_(3.0)
    assert (moved - forward("t5", silent)).abs().max() <= 1e-9
    assert (moved - forward("t5", cut({FIRST: {0, 1, 2}})[0])).abs().max() > 1e-3


def test_a_table_that_nobody_reads_goes_and_only_then():
    stack = (FIRST, FIRST.replace("block.0", "block.1"))
    small, silent = cut({path: {0, 1, 2} for path in stack})
    assert TABLE not in state_of(small)
    assert TABLE.replace("encoder.", "decoder.") in state_of(small)
    assert (forward("t5", small) - forward("t5", silent)).abs().max() <= 1e-9
