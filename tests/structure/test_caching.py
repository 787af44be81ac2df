import copy

import pytest
import torch
from cutting import CASES, Cut, cut
from families import FACTS, family
from torch import Tensor, nn

from fedprune.structure.caching import attentions_of

LIKE_LLAMA = ["llama", "llama-gqa", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"]
WRITERS = ["gpt2", "t5", "t5-gated", "opt", "gpt-neox", *LIKE_LLAMA]
TYPED = ["qwen2", "gemma2", "gemma3", "modernbert"]
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])


def of(name: str, case: str) -> Cut:
    return cut(family(name).model, family(name).layout, CASES[case](family(name).layout))


def caching(name: str) -> nn.Module:
    model = copy.deepcopy(family(name).model)
    model.config.use_cache = model.generation_config.use_cache = True
    return model


def written(model: nn.Module, **how: object) -> tuple[Tensor, Tensor]:
    """The tokens a model writes, one at a time, and the logits it chose them by."""
    said = model.generate(
        PROMPT, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True, **how,
    )  # fmt: skip
    return said.sequences, torch.stack(said.logits)


CUT = ["both", "an attention", "the last block", "the first block", "the first block alone"]


@pytest.mark.sampled(16)
@pytest.mark.parametrize("case", CUT)
@pytest.mark.parametrize("name", WRITERS)
def test_a_cut_model_writes_the_same_with_a_cache_as_without(name, case):
    it = of(name, case)
    words, logits = written(it.small, use_cache=True)
    for model in (it.small, it.silent):
        again, others = written(model, use_cache=False)
        assert torch.equal(words, again)
        assert (logits - others).abs().max() <= 1e-9
    _, whole = written(family(name).model, use_cache=False)
    assert (logits - whole).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_static_cache_serves_a_cut_model_too(name):
    for case in ("both", "the first block"):
        small = of(name, case).small
        _, want = written(small, use_cache=False)
        _, got = written(small, cache_implementation="static")
        assert (got - want).abs().max() <= 1e-9


@pytest.mark.parametrize("name", WRITERS)
def test_without_any_attention_there_is_no_cache(name):
    layout = family(name).layout
    it = cut(caching(name), layout, CASES["all attentions"](layout))
    assert it.small.config.use_cache is it.small.generation_config.use_cache is False
    want, found = written(it.silent, use_cache=False), written(it.small)
    assert torch.equal(found[0], want[0])
    assert (found[1] - want[1]).abs().max() <= 1e-9


def test_an_encoder_without_attention_leaves_the_decoder_its_cache():
    layout = family("t5").layout
    gone = {k: v for k, v in CASES["all attentions"](layout).items() if "encoder." in k[1]}
    it = cut(caching("t5"), layout, gone)
    assert it.small.config.use_cache is it.small.generation_config.use_cache is True
    _, got = written(it.small, use_cache=True)
    _, want = written(it.silent, use_cache=False)
    assert (got - want).abs().max() <= 1e-9


@pytest.mark.parametrize("name", list(FACTS))
def test_attentions_that_are_left_are_numbered_from_0_by_stack_and_role(name):
    numbers = {}
    for case in ("both", "the first block"):
        small = of(name, case).small
        numbers[case] = sorted(
            m.layer_idx
            for roles in attentions_of(small).values()
            for modules in roles.values()
            for m in modules
        )
    attentions = FACTS[name][2]
    if not numbers["both"]:  # an encoder whose attentions have no numbers
        assert not hasattr(small.config, "use_cache")
        return
    assert numbers["both"] == sorted([0, 1] * (attentions // 2))
    blocks = 1 if name.startswith("t5") else attentions // 2  # t5: of the encoder only
    left = [0, 1] * (attentions // 2 - blocks) + [0] * blocks
    if name in TYPED:  # the first layer of a cache is for whole attention, and that is gone
        left = [1]
        assert not getattr(small.config, "use_cache", False)
    assert numbers["the first block"] == sorted(left)
