"""FLAP against its authors' formulas in numpy, and against means put in the place of what went."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from specimens import BLOCKS, Specimen, built, evidence_of, probe_of
from test_inputs import given_to
from torch import Tensor, nn

from fedprune import Shard, federate
from fedprune.client.host import Host
from fedprune.engines.inline import inline_port
from fedprune.export.config_keys import Unplain
from fedprune.export.hf_config import plain_model
from fedprune.protocol.models import dense_model, layout_at, shaped
from fedprune.scores.catalog import SCORES
from fedprune.scores.input_sums import improper
from fedprune.scores.inputs import inputs_of, rows_of, sums_of
from fedprune.server.state import State
from fedprune.structure.edits import Edit
from fedprune.structure.layout import as_rows
from fedprune.structure.surgery import reshaped
from fedprune.tasks.task import batches
from fedprune.tensors.models import load_into
from tests.runs import house_of, tiny

FLAP = SCORES["flap"]


def by_hand(s: Specimen, kind: str) -> dict[str, np.ndarray]:
    """The score of every unit by the path of its sub-layer, WIFV standardised, with numpy."""
    given, found = given_to(s, s.shards[1]), {}
    for group in s.layout.structure.groups:
        (reader,) = (p for p in group.parts if p.axis == "column")
        if group.kind != kind:
            continue
        w = as_rows(s.layout, reader.tensor, s.weights[reader.tensor]).numpy()
        metric = given[reader.tensor].numpy().var(0, ddof=1) * (w**2).sum(0)
        metric = metric**2 if kind == "head" else metric
        metric = (metric - metric.mean()) / metric.std(ddof=1)
        found[group.path] = metric[reader.index.numpy()].mean(1)
    return found


@pytest.mark.parametrize("kind", ["head", "neuron"])
@pytest.mark.parametrize("family", BLOCKS)
def test_flap_is_what_its_authors_compute(family, kind):
    s = built(family)
    probe = probe_of(s, batches(s.shards[1], 4), unit="head-neuron")
    evidence = evidence_of(s, FLAP.asks[0].collect(probe), 1.0, unit="head-neuron")
    scores = FLAP.finalise(evidence)
    for path, units in by_hand(s, kind).items():
        (group,) = (g for g in s.layout.structure.groups if g.path == path)
        for part in group.parts:
            rows = as_rows(s.layout, part.tensor, scores[part.tensor])
            along = rows if part.axis == "row" else rows.t()
            expected = np.broadcast_to(units[:, None, None], along[part.index].shape)
            np.testing.assert_allclose(along[part.index], expected, rtol=1e-6, atol=1e-9)


ONCE = {"rounds": 1, "warmup": 0, "end": 1, "local_steps": 0, "schedule": "one-shot"}
KEYS = {"task": "shakespeare", "length": 16, "clients": 3, "cohort": 3, "sparsity": 0.2, **ONCE}


def a_run(**keys: Any) -> tuple[Host, State]:
    """A run on the first few windows of three clients."""
    config = tiny(**{**KEYS, "score": "flap", "shrink": "end", **keys})
    host = house_of(config)
    shards = {
        p: Shard(*({n: t[:20] for n, t in part.items()} for part in vars(shard).values()))
        for p, shard in host.shards.items()
    }
    host = replace(host, shards=shards)
    return host, federate(config, inline_port(host)).state


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama-gqa", "gpt2"])
def test_what_went_is_as_if_it_always_did_what_it_does_on_average(model):
    host, state = a_run(model=model)
    cut, whole = cut_model(host, state), dense_model(host.config).eval()
    layout = layout_at(host.config, ())
    kept = layout_at(host.config, state.edits).in_origin(state.masks)
    for name, mean in means_of(host, whole).items():
        there = as_rows(layout, name, kept[name]).any(0)
        whole.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
            lambda _m, args, there=there, mean=mean: (torch.where(there, args[0], mean),)
        )
    with torch.no_grad():
        expected, found = whole(input_ids=TOKENS).logits, cut(input_ids=TOKENS).logits
    assert not all(mask.all() for mask in kept.values())
    assert torch.allclose(found, expected, atol=2e-5)


TOKENS = torch.arange(16).view(1, -1) % 60


def cut_model(host: Host, state: State) -> nn.Module:
    cut = shaped(host.config, state.edits)[0].eval()
    load_into(cut, state.weights)
    return cut


def means_of(host: Host, model: nn.Module) -> dict[str, Tensor]:
    """The mean of all clients' inputs of what reads units, noted down call by call."""
    parts = [p for g in host.layout.structure.groups for p in g.parts if p.axis == "column"]
    train = [shard.train for shard in host.shards.values()]
    everything = {n: torch.cat([part[n] for part in train]) for n in train[0]}
    s = Specimen(model, host.layout, host.task.loss, (everything,), {}, 1)
    with torch.no_grad():
        given = given_to(s, everything)
    return {p.tensor: given[p.tensor].double().mean(0).float() for p in parts}


@pytest.mark.slow
def test_a_config_of_llama_holds_the_biases_and_one_that_cannot_says_so():
    host, state = a_run(unit="head", scope="layer")
    cut, dense = cut_model(host, state), dense_model(host.config)
    plain = plain_model(cut, dense, state.edits)
    assert (plain.config.attention_bias, plain.config.mlp_bias) == (True, False)
    assert torch.equal(plain(input_ids=TOKENS).logits, cut(input_ids=TOKENS).logits)
    odd = [Edit("bias", "model.layers.0.self_attn.q_proj")]
    with pytest.raises(Unplain, match="a bias which others of its kind lack"):
        plain_model(reshaped(dense, odd), dense_model(host.config), tuple(odd))


def test_sums_that_no_inputs_add_up_to_are_known():
    fine = {inputs_of("w"): torch.tensor([4.0]), rows_of("w"): torch.tensor([1.0])}
    assert not improper({**fine, sums_of("w"): torch.tensor([-2.0])})
    assert improper({**fine, sums_of("w"): torch.tensor([1e6])})
    assert improper({**fine, inputs_of("w"): torch.tensor([-1.0]), sums_of("w"): torch.zeros(1)})


def test_a_layer_that_has_a_bias_gets_no_second_one():
    with pytest.raises(ValueError, match="no linear layer without one"):
        reshaped(built("gpt2").model, [Edit("bias", "transformer.h.0.mlp.c_proj")])
