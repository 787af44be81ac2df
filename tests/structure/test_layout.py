import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fedprune import TASKS
from fedprune.config import configure
from fedprune.structure.layout import layout_of
from fedprune.tasks.task import output_of


@pytest.mark.parametrize("task", ["digits", "fashion-mnist"])
def test_of_a_convolutional_net_the_weights_of_its_layers_but_the_head(task):
    model = TASKS[task].model(configure({"task": task}))
    layout = layout_of(model, output=output_of(TASKS[task], model))
    assert layout.prunable == ("features.0.weight", "features.4.weight", "hidden.weight")
    norms = [f"features.{i}.{w}" for i in (1, 5) for w in ("weight", "bias")]
    assert set(layout.spared) == {*norms, "hidden.bias", "head.weight", "head.bias"}
    assert set(layout.variances) == {"features.1.running_var", "features.5.running_var"}
    assert layout.parameters == sum(p.numel() for p in model.parameters())


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


nn_utils, parametrizations = nn.utils, nn.utils.parametrizations


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
    names = [name for name, _ in Own().named_parameters()]
    assert sorted(layout.prunable + layout.spared) == sorted(names)
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


def test_a_model_without_blocks_is_its_own_layer():
    assert layout_of(nn.Linear(2, 2)).prunable == ("weight",)


def _parts() -> nn.ModuleDict:
    parts = nn.ModuleDict({
        "table": nn.Embedding(3, 2), "rnn": nn.LSTM(2, 2), "turn": nn.ConvTranspose1d(2, 2, 1),
        "attend": nn.MultiheadAttention(2, 1), "still": nn.Linear(2, 2),
        "out": nn.Linear(2, 2, bias=False), "layer": nn.Linear(2, 2, bias=False),
        "normed": parametrizations.weight_norm(nn.Linear(2, 2, bias=False)),
        "void": nn.Linear(0, 2, bias=False),
    })  # fmt: skip
    parts["still"].weight.requires_grad_(False)
    parts.experts = nn.Parameter(torch.ones(2, 2, 2))
    parts.loose = nn.Parameter(torch.ones(2, 2))
    parts.number = nn.Parameter(torch.tensor(1.0))
    return parts


def test_every_parameter_that_stays_says_what_it_is():
    model = _parts()
    layout = layout_of(model, output=("out",), exclude=("normed.*",))
    assert layout.prunable == ("attend.out_proj.weight", "layer.weight")
    assert tuple(layout.stays) == layout.spared
    kinds = {name: kind for name, kind in layout.stays.items() if "bias" not in name}
    originals = {f"normed.parametrizations.weight.original{i}": "excluded" for i in (0, 1)}
    assert kinds == {
        "experts": "stacks of matrices (experts and the like)", "loose": "other matrices",
        "number": "biases, norms and other vectors", "table.weight": "embeddings",
        "rnn.weight_ih_l0": "recurrent weights", "rnn.weight_hh_l0": "recurrent weights",
        "turn.weight": "transposed convolutions",
        "attend.in_proj_weight": "fused attention inputs", "still.weight": "frozen layers",
        "out.weight": "head of output", "void.weight": "empty", **originals,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (lambda m: nn_utils.weight_norm(m), "weight_norm"),
        (lambda m: nn_utils.spectral_norm(m), "spectral_norm"),
        (lambda m: prune.l1_unstructured(m, "weight", 1), "torch.nn.utils.prune"),
        (parametrizations.weight_norm, "parametrised by WeightNorm"),
        (parametrizations.spectral_norm, "parametrised by SpectralNorm"),
        (parametrizations.orthogonal, "parametrised by Orthogonal"),
        (
            lambda m: nn_utils.parametrize.register_parametrization(m, "weight", nn.Softplus()),
            "parametrised by Softplus",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("layer", [nn.Linear, lambda i, o: nn.Conv1d(i, o, 1)])
def test_a_computed_weight_is_refused_by_name_or_left_dense(change, by, layer):
    body = layer(3, 4)
    model = nn.Sequential(change(body) or body, nn.Linear(4, 2))
    with pytest.raises(ValueError, match=rf"model: the weight of 0 is computed \({by}\).*allowed:"):
        layout_of(model)
    for spared in ({"exclude": ("0.*",)}, {"output": ("0",)}, {}):
        body.requires_grad_(bool(spared))
        if by.startswith("parametrised"):
            assert layout_of(model, **spared).prunable == ("1.weight",)
        else:  # a hook sets it, and such a model cannot be copied
            with pytest.raises(ValueError, match=r"allowed: .*torch.nn.utils.parametrizations"):
                layout_of(model, **spared)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"include": ("still.weight",)}, "still.weight is frozen"),
        ({"include": ("*ill.w*",)}, "still.weight is frozen"),
        ({"include": ("layr.weight",)}, r"include='layr.weight': .*such as layer.weight"),
        ({"exclude": ("*LAYER*",)}, r"exclude='\*LAYER\*': .*such as layer.weight"),
        ({"output": ("outt",)}, r"its output names 'outt', no module of the model; allowed: out"),
        ({"exclude": ("normed.*", "layer.*", "out*", "attend*")}, "nothing is left to prune of 3"),
    ],
)
def test_what_cannot_be_is_one_line_with_what_can(options, said):
    rest = {"exclude": ("normed.*",), **options}
    with pytest.raises(ValueError, match=said) as caught:
        layout_of(_parts(), **rest)
    assert "allowed:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_with_nothing_prunable_the_kinds_that_there_are_are_named():
    model = nn.ModuleDict({"rnn": nn.LSTM(2, 3), "table": nn.Embedding(4, 2)})
    with pytest.raises(ValueError, match=r"recurrent weights \(4\), embeddings \(1\)") as caught:
        layout_of(model)
    assert "--include 'rnn.weight_ih_l0'" in str(caught.value)
    assert layout_of(model, include=("rnn.weight_ih_l0",)).kinds == {"rnn.weight_ih_l0": "other"}


def test_a_head_is_found_under_each_of_its_names():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "last": nn.Linear(2, 2)})
    model["head"] = model["last"]
    assert layout_of(model, output=("head",)).prunable == ("body.weight",)
