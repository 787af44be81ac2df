"""Slicing: a rotation changes nothing, and what goes is what numpy's principal directions say."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from fedprune import Result, RunConfig, federate, load
from fedprune.commands.main import main
from fedprune.engines.inline import inline_port
from fedprune.opening import opening_of
from fedprune.options.refusal import ConfigError
from fedprune.protocol.models import shaped
from fedprune.redundancy.principal import in_basis, principal
from fedprune.server.state import State
from fedprune.structure.edits import Edit
from fedprune.structure.families.catalog import FAMILIES, SMALL_MODELS
from fedprune.structure.families.family import Need
from fedprune.structure.slicing import residual_path, width_left
from fedprune.structure.surgery import reshaped
from fedprune.tasks.task import Part
from fedprune.tensors.models import load_into, state_of
from tests.methods.test_reduce import PARTS, host_with, reduce
from tests.runs import cut_short, same, tiny

ABLE = [name for family in FAMILIES.values() if family.norms for name in family.small]
IDS = torch.arange(40).reshape(2, 20)
WIDTH = 32
CUT = (
    Edit("head", "model.layers.0.self_attn"),
    Edit("neuron", "model.layers.1.mlp", tuple(range(5, 40))),
    Edit("bias", "model.layers.0.self_attn.o_proj"),
    Edit("bias", "model.layers.1.mlp.down_proj"),
    Edit("rank", "model.layers.0.mlp.down_proj", (4,)),
    Edit("rank", "model.layers.1.self_attn.q_proj", (4,)),
    Edit("vocab", "model.embed_tokens", tuple(range(45))),
)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms in float64, which transformers computes in float32 whatever the model's type is."""
    for name in ABLE:
        norm = FAMILIES[config_of(name).model_type].norms
        module = sys.modules[type(model_of(name)).__module__]
        monkeypatch.setattr(getattr(module, norm), "forward", _normed)


def _normed(norm: Any, x: Tensor) -> Tensor:
    size = (x.square().mean(-1, keepdim=True) + norm.variance_epsilon) ** 0.5
    out: Tensor = norm.weight * x / size
    return out


def config_of(name: str) -> Any:
    return SMALL_MODELS[name].config(Need("causal", 50, 32, width=WIDTH))


def model_of(name: str, edits: tuple[Edit, ...] = (), kind: Any = AutoModelForCausalLM) -> Any:
    """A model with random numbers everywhere, in norms and biases too."""
    make = getattr(kind, "from_config", None) or kind._from_config
    model = reshaped(make(config_of(name)).double().eval(), edits)
    gen = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen).double() * 0.3 + (p.dim() == 1))
    return model


def rotation() -> Tensor:
    gen = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=gen, dtype=torch.float64))[0]


def sliced_by(basis: Tensor, model: Any, dense: Any, edits: tuple[Edit, ...] = ()) -> nn.Module:
    path = residual_path(model)
    what = Edit("slice", path.decoder, (basis.shape[1],))
    out = reshaped(copy.deepcopy(dense), (*edits, what))
    weights = {**state_of(model), **in_basis(state_of(model), path, basis)}
    load_into(out, {n: weights[n] for n in state_of(out)})
    return out


def said(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("edits", [(), CUT], ids=["whole", "cut"])
@pytest.mark.parametrize("name", ABLE)
def test_a_rotation_alone_changes_nothing(name, edits):
    model = model_of(name, edits)
    rotated = sliced_by(rotation(), model, model_of(name), edits)
    assert not torch.allclose(
        state_of(model)["model.embed_tokens.weight"], state_of(rotated)["model.embed_tokens.weight"]
    )
    assert float((said(rotated) - said(model)).abs().max()) < 1e-9


def test_a_classifier_s_head_reads_rotated_states_too():
    model = model_of("llama", kind=LlamaForSequenceClassification)
    model.config.pad_token_id = 0
    assert float((said(sliced_by(rotation(), model, model)) - said(model)).abs().max()) < 1e-9


def model_in(config: RunConfig, state: State) -> nn.Module:
    model, _ = shaped(config, state.edits)
    load_into(model, state.weights)
    return model.eval()


def projected(model: Any, keep: np.ndarray) -> Tensor:
    """What the model says if all that is added to its residual states is projected: y P.

    Norms go on dividing by the mean over all channels, and heads stay tied.
    """
    onto = torch.from_numpy(keep @ keep.T)
    decoder = model.model
    writers = [decoder.embed_tokens]
    writers += [w for b in decoder.layers for w in (b.self_attn.o_proj, b.mlp.down_proj)]
    hooks = [w.register_forward_hook(lambda _m, _x, y: y @ onto) for w in writers]
    out = said(model)
    for hook in hooks:
        hook.remove()
    return out


def signals(model: Any, ids: Tensor) -> np.ndarray:
    """Σ x xᵀ over all residual norms in numpy, x over the root of its mean square."""
    states: list[np.ndarray] = []
    norms = [n for b in model.model.layers for n in (b.input_layernorm, b.post_attention_layernorm)]
    norms += [model.model.norm]
    keep = [n.register_forward_hook(lambda _m, x, _y: states.append(x[0].numpy())) for n in norms]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in keep:
        hook.remove()
    rows = np.concatenate([s.reshape(-1, s.shape[-1]) for s in states]).astype(np.float64)
    epsilon = norms[0].variance_epsilon
    rows = rows / np.sqrt((rows**2).mean(1, keepdims=True) + epsilon)
    return np.asarray(rows.T @ rows)


@pytest.mark.parametrize("name", ABLE)
def test_what_is_left_is_the_model_projected_on_numpy_s_directions(name):
    model = model_of(name)
    sums = signals(model, IDS)
    values, vectors = np.linalg.eigh(sums)
    width = width_left(model, 0.3)
    assert width == 24 - 24 % model.config.num_attention_heads
    keep = vectors[:, np.argsort(-values)[:width]]
    basis, energies = principal(torch.from_numpy(sums))
    assert np.allclose(energies.numpy(), np.sort(values)[::-1], atol=1e-9 * values.max())
    small = sliced_by(basis[:, :width], model, model)
    expected = projected(model, keep)
    assert float((said(small) - expected).abs().max()) < 1e-9
    assert float((said(model) - expected).abs().max()) > 1e-3
    assert small.config.hidden_size == width == small.get_input_embeddings().weight.shape[1]
    assert model.config.hidden_size == WIDTH


SLICED = {
    "task": "shakespeare", "model": "llama-tied", "length": 16, "clients": 2, "cohort": 2,
    "hosts": 1, "rounds": 1, "warmup": 0, "end": None, "local_steps": 1, "sparsity": 0.0,
    "reduce": ("slice",),
}  # fmt: skip


def run(parts: list[Part], **keys: Any) -> tuple[State, Any, Any]:
    """The first round's reduction with clients that have these windows."""
    config = tiny(**{**SLICED, "clients": len(parts), "cohort": len(parts), **keys})
    state, plan = opening_of(config, None, None)
    port = inline_port(host_with(config, parts))
    return reduce(replace(state, round=1), plan, port, range(len(parts)))


def test_federated_equals_pooled():
    everything = {n: torch.cat([part[n] for part in PARTS]) for n in PARTS[0]}
    (apart, _, told), (pooled, plan, _) = run(PARTS), run([everything])
    assert told["channels"] == [64, 52]
    assert 0.8 < told["channels_hold"] < 1.0
    dense, _ = opening_of(tiny(**SLICED), None, None)
    said_by = [said(model_in(plan.config, state)) for state in (apart, pooled, dense)]
    far = float((said_by[0] - said_by[1]).abs().max())
    assert far < 1e-4 * float((said_by[0] - said_by[2]).abs().max())
    # One matrix of channels goes up from each client, whatever the depth.
    assert apart.book.traffic.up < 2 * (64 * 64 * 4 + 500)


def test_clients_directions_are_numpy_s():
    after, _, _ = run(PARTS, slice_part=0.0)
    config = tiny(**SLICED)
    state, _ = opening_of(config, None, None)
    model = model_in(config, state)
    sums = sum(signals(model, part["inputs"]) for part in PARTS)
    _, vectors = np.linalg.eigh(sums)
    table = state.weights["model.embed_tokens.weight"].double().numpy() @ vectors[:, ::-1]
    found = after.weights["model.embed_tokens.weight"].double().numpy()
    # A direction's sign is free.
    assert np.allclose(np.abs(found[:, :20]), np.abs(table[:, :20]), atol=1e-4)


def played_in(folder: Path, config: RunConfig, **more: Any) -> Result:
    return federate(config, inline_port(host_with(config, PARTS)), folder=folder, **more)


@pytest.mark.slow
def test_a_narrower_model_is_tuned_cut_kept_and_exported(tmp_path, capsys):
    keys = {**SLICED, "rounds": 3, "slice_part": 0.25}
    more = {"warmup": 1, "end": 2, "sparsity": 0.3, "unit": "head-neuron", "shrink": "end"}
    more |= {"reduce": ("slice", "low-rank"), "rank_budget": 0.9, "reduce_round": 2}
    config = tiny(**{**keys, **more, "baselines": ("dense",)})
    whole = played_in(tmp_path / "whole", config)
    rows = [row for row in whole.rows if row["arm"] == "pruned"]
    assert [bool(row["failures"]) for row in rows] == [False] * 3
    assert rows[1]["reduced"]["channels"] == [64, 48]
    assert same(state_of(load(tmp_path / "whole")), whole.state.weights)
    stopped = config.model_copy(update={"baselines": ()})
    cut_short(stopped, tmp_path / "again", 2, host_with(stopped, PARTS))
    again = played_in(tmp_path / "again", stopped, resume=True)
    assert [r["weights_digest"] for r in again.rows] == [r["weights_digest"] for r in rows]
    plain = played_in(tmp_path / "plain", tiny(**keys))
    assert plain.summary["parameters"] == 106_944
    for to in ("hf", "gguf", "safetensors"):
        given = ["export", str(tmp_path / "plain"), "--to", to, "--out", str(tmp_path / to)]
        assert main(given) == 0, capsys.readouterr()
        back = load(tmp_path / to)
        assert torch.allclose(said(back), said(load(tmp_path / "plain")), atol=1e-6)
        assert back.config.hidden_size == 48


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"model": "gpt2"}, "GPT2LMHeadModel is no model with a head whose states can be rotated"),
        ({"model": "gemma2"}, "allowed: such of llama, mistral, qwen2, qwen3"),
    ],
)
def test_other_families_are_refused_before_anything_starts(keys, line):
    with pytest.raises((ValueError, ConfigError), match=line):
        opening_of(tiny(**{**SLICED, **keys}), None, None)
