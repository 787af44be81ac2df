from collections.abc import Callable

import pytest
import torch
from cutting import cut, every, some
from torch import Tensor, nn

from fedprune.structure.experts import with_experts
from fedprune.structure.families.catalog import SMALL_MODELS, SUBLAYERS
from fedprune.structure.families.family import Need
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.zoo import heads_of

IDS = torch.tensor([[3, 5, 2, 6, 4, 7], [2, 2, 9, 3, 1, 1]])
SEEN = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def dressed(build: Callable[[], nn.Module]) -> tuple[nn.Module, Layout]:
    """In float64, no bias or norm as it starts."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = with_experts(build()).double().eval()
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    output = heads_of(model) if hasattr(model, "get_output_embeddings") else ()
    return model, layout_of(model, output=output)


@torch.no_grad()
def assert_says_the_same(
    build: Callable[[], nn.Module], kind: str, given: dict[str, Tensor]
) -> tuple[nn.Module, Tensor]:
    """Without some units and all of a kind in the first block; the cut model, what it says."""
    model, layout = dressed(build)
    first = layout.structure.blocks[0].path
    gone = some(layout, "head", "neuron") | every(layout, f"{first}.", kind)
    it = cut(model, layout, gone)
    want, whole, got = (m(**given)[0] for m in (it.silent, model, it.small))
    assert (got - want).abs().max() <= 1e-9
    assert (whole - want).abs().max() > 1e-2
    return it.small, want


PURPOSES = [(name, purpose) for name, f in SMALL_MODELS.items() for purpose in f.purposes]


@pytest.mark.sampled(10)
@pytest.mark.parametrize(("name", "purpose"), PURPOSES)
def test_every_family_of_the_tasks_is_cut_whatever_it_is_for(name, purpose):
    import transformers as t

    auto = {
        "causal": t.AutoModelForCausalLM,
        "masked": t.AutoModelForMaskedLM,
        "seq2seq": t.AutoModelForSeq2SeqLM,
        "classify": t.AutoModelForSequenceClassification,
        "tag": t.AutoModelForTokenClassification,
        "image": t.AutoModelForImageClassification,
    }[purpose]
    config = SMALL_MODELS[name].config(Need(purpose, vocabulary=11, length=8, end=1, classes=3))
    config.num_labels = 3
    given = {"input_ids": IDS, "attention_mask": SEEN}
    if purpose == "image":
        given = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 64).sin().double().view(2, 3, 8, 8)}
    if purpose == "seq2seq":
        given["decoder_input_ids"] = IDS.flip(1)
    assert_says_the_same(lambda: auto.from_config(config), "head", given)


def bert_decoder() -> nn.Module:
    import transformers as t

    return t.BertLMHeadModel(t.BertConfig(
        vocab_size=11, hidden_size=12, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=10, max_position_embeddings=16, is_decoder=True,
        add_cross_attention=True,
    ))  # fmt: skip


def llama_with_biases() -> nn.Module:
    import transformers as t

    return t.LlamaForCausalLM(t.LlamaConfig(
        vocab_size=11, hidden_size=12, intermediate_size=10, num_hidden_layers=3, head_dim=4,
        num_attention_heads=3, num_key_value_heads=3, attention_bias=True, mlp_bias=True,
        max_position_embeddings=16,
    ))  # fmt: skip


def t5_encoder() -> nn.Module:
    import transformers as t

    return t.T5EncoderModel(
        t.T5Config(vocab_size=11, d_model=12, d_kv=4, d_ff=10, num_layers=3, num_heads=3)
    )


@pytest.mark.parametrize("build", [bert_decoder, llama_with_biases, t5_encoder])
@pytest.mark.parametrize("kind", ["head", "neuron", ""])
def test_whole_sublayers_leave_what_the_masked_ones_say(build, kind):
    given = {"input_ids": IDS, "attention_mask": SEEN}
    if build is bert_decoder:
        given["encoder_hidden_states"] = torch.linspace(-1, 1, 120).double().reshape(2, 5, 12)
    small, want = assert_says_the_same(build, kind, given)
    if build is not t5_encoder:
        begun = {**given, "input_ids": IDS[:, :4], "attention_mask": SEEN[:, :4]}
        rest = {**given, "input_ids": IDS[:, 4:]}
        with torch.no_grad():
            past = small(**begun, use_cache=True).past_key_values
            said = small(**rest, past_key_values=past, use_cache=True)[0]
        assert (said - want[:, 4:]).abs().max() <= 1e-9


def test_dropout_of_a_removed_layer_s_bias_is_still_drawn_for_every_position():
    import transformers as t

    config = t.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=3, resid_pdrop=0.5
    )
    model = t.GPT2LMHeadModel(config).double()
    layout = layout_of(model, output=("lm_head",))
    gone = every(layout, "transformer.h.0.attn.")
    small = cut(model, layout, gone).small.transformer.h[0].attn.train()
    with torch.no_grad():
        small.c_proj.bias.fill_(1.0)
        said, _ = small(torch.zeros(2, 6, 12).double())
    assert said.shape == (2, 6, 12)
    assert set(said.unique().tolist()) == {0.0, 2.0}
    assert len({tuple(row) for row in said.reshape(12, 12).tolist()}) > 6


def test_a_block_of_which_nothing_is_left_hands_its_input_on():
    model, layout = dressed(t5_encoder)
    small = cut(model, layout, every(layout, "encoder.block.1.")).small
    block = small.encoder.block[1]
    states, bias = torch.zeros(1, 2, 12), torch.ones(1)
    assert sum(p.numel() for p in block.parameters()) == 0
    assert block(states, None, bias)[0] is states
    assert block(states, None, bias)[1] is bias
    names = [n for n, _ in small.named_parameters()]
    assert any(n.startswith("encoder.block.2.") for n in names)
    assert not any(n.startswith("encoder.block.1.") for n in names)


def test_a_norm_before_a_sublayer_is_known_unless_norms_come_after_what_was_added_up():
    after = {name for name, sublayer in SUBLAYERS.items() if not sublayer.frame.norms}
    encoders = ("Bert", "Roberta", "Electra", "DistilBert", "FFN")
    assert after == {name for name in SUBLAYERS if name.startswith(encoders)}
