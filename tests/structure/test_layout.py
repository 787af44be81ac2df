import pytest
from torch import nn

from fedprune import TASKS
from fedprune.config import configure
from fedprune.structure.layout import layout_of
from fedprune.tasks.task import output_of

BLOCK = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]


@pytest.mark.parametrize("task", ["digits", "fashion-mnist"])
def test_of_a_convolutional_net_the_weights_of_its_layers_but_the_head(task):
    model = TASKS[task].model(configure({"task": task}))
    layout = layout_of(model, output=output_of(TASKS[task], model))
    assert layout.prunable == ("features.0.weight", "features.4.weight", "hidden.weight")
    norms = [f"features.{i}.{w}" for i in (1, 5) for w in ("weight", "bias")]
    assert set(layout.spared) == {*norms, "hidden.bias", "head.weight", "head.bias"}
    assert set(layout.variances) == {"features.1.running_var", "features.5.running_var"}
    assert layout.parameters == sum(p.numel() for p in model.parameters())


def test_of_a_llama_the_projections_but_not_embedding_norms_and_head():
    task = TASKS["shakespeare"]
    model = task.model(configure({"task": "shakespeare"}))
    layout = layout_of(model, output=output_of(task, model))
    blocks = {f"model.layers.{i}.{part}.weight" for i in (0, 1) for part in BLOCK}
    assert set(layout.prunable) == blocks
    norms = [f"model.layers.{i}.{n}" for i in (0, 1) for n in ("input", "post_attention")]
    spared = {f"{n}_layernorm.weight" for n in norms} | {"model.norm.weight", "lm_head.weight"}
    assert set(layout.spared) == spared | {"model.embed_tokens.weight"}
    assert layout.variances == {}


@pytest.mark.parametrize("tied", [True, False])
def test_of_a_gpt2_its_conv1d_but_not_what_is_tied_to_the_embedding(tied):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=16, tie_word_embeddings=tied
    )
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    blocks = {f"transformer.h.{i}.{layer}.weight" for i in (0, 1) for layer in layers}
    for output in ((), ("lm_head",)):  # a tied head is the embedding, named or not
        layout = layout_of(GPT2LMHeadModel(config), output=output)
        untied = {"lm_head.weight"} if not (tied or output) else set()
        assert set(layout.prunable) == blocks | untied
        assert "transformer.wte.weight" in layout.spared
        assert ("lm_head.weight" in layout.shapes) != tied


class Own(nn.Module):
    """Layers of every kind, one shared by two names, one parameter of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(2, 2, 1)
        self.three = nn.Conv3d(2, 2, 1, bias=False)
        self.turn = nn.ConvTranspose2d(2, 2, 1)
        self.norm = nn.LayerNorm(2)
        self.first = nn.Linear(2, 2, bias=False)
        self.again = nn.Linear(2, 2)
        self.again.weight = self.first.weight
        self.loose = nn.Parameter(self.norm.weight.detach().clone())
        self.head = nn.Linear(2, 3)


def test_of_an_own_module_layers_by_kind_ties_once():
    layout = layout_of(Own())
    weights = ("one.weight", "three.weight", "first.weight", "head.weight")
    assert set(layout.prunable) == set(weights)
    assert layout.prunable == tuple(n for n in layout.shapes if n in weights), "in model order"
    assert "again.weight" not in layout.shapes
    assert {"loose", "again.bias", "turn.weight", "norm.weight"} <= set(layout.spared)


def test_the_head_of_output_is_spared_with_all_that_it_is_tied_to():
    assert "head.weight" in layout_of(Own(), output=("head",)).spared
    assert "first.weight" in layout_of(Own(), output=("again",)).spared


def test_patterns_spare_and_add():
    spared = layout_of(Own(), exclude=("*e*.weight",))
    assert spared.prunable == ("first.weight",)
    added = layout_of(Own(), include=("loose", "turn.*"), output=("head",))
    assert {"loose", "turn.weight", "turn.bias", "first.weight"} < set(added.prunable)
    both = layout_of(Own(), include=("head.*",), exclude=("head.bias",), output=("head",))
    assert "head.weight" in both.prunable
    assert "head.bias" in both.spared, "exclude wins"


def test_every_parameter_is_either_prunable_or_spared():
    layout = layout_of(Own(), exclude=("one.*",))
    names = [name for name, _ in Own().named_parameters()]
    assert sorted(layout.prunable + layout.spared) == sorted(names)


def test_a_model_without_blocks_is_its_own_layer():
    assert layout_of(nn.Linear(2, 2)).prunable == ("weight",)


@pytest.mark.parametrize("key", ["exclude", "include"])
def test_a_pattern_that_matches_nothing_is_refused(key):
    with pytest.raises(ValueError, match=r"'hidden\.\*': matches no parameter; allowed: .*loose"):
        layout_of(Own(), **{key: ("hidden.*",)})


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2)), nn.Linear(2, 2)]
)
def test_nothing_left_to_prune_is_refused(model):
    exclude = ("weight",) if isinstance(model, nn.Linear) else ()
    with pytest.raises(ValueError, match="nothing is left to prune"):
        layout_of(model, exclude=exclude)


def test_patterns_know_upper_from_lower_case():
    with pytest.raises(ValueError, match="matches no parameter"):
        layout_of(Own(), exclude=("HEAD.weight",))


def test_frozen_weights_are_spared():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    layout = layout_of(model)
    assert layout.prunable == ("1.weight",)
    assert "0.weight" in layout.spared
