"""What a mask has emptied leaves the model: same choices, same numbers, fewer bytes."""

from typing import Any

import pytest
import torch

from fedprune import RunConfig, federate, load
from fedprune.client.host import REBUILT, build_host, with_edits
from fedprune.config import to_toml
from fedprune.engines.inline import inline_port
from fedprune.methods.catalog import memories_of
from fedprune.opening import opening_of
from fedprune.protocol.broadcast import decode_question, encode_question
from fedprune.protocol.models import layout_at, shaped
from fedprune.records.checkpoint import load_state
from fedprune.rounds import loop
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.shrink import fitted, shrunk
from fedprune.server.state import Model, State
from fedprune.structure.edits import Edit
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import count_kept
from tests.runs import cut_short, house_of, played, tiny


def plays(**keys: Any) -> RunConfig:
    """A run of three rounds on Shakespeare's LLaMA, the second and the third prune."""
    sizes = {"clients": 2, "cohort": 2, "rounds": 3, "warmup": 1, "end": 3, "local_steps": 1}
    about = {"task": "shakespeare", "sparsity": 0.2, "unit": "neuron", "agreement": False}
    about |= {"measure_every": keys.get("rounds", 3)} | (
        {} if keys.get("task") == "digits" else {"length": 16}
    )
    if keys.get("score") != "magnitude":
        about["score_examples"] = 64  # which ones is drawn alike, whatever the shape
    return tiny(**{**about, **sizes, **keys})


@pytest.fixture
def halved() -> tuple[RunConfig, Model, Model, Plan, Plan]:
    """A model half of whose neurons and one whole sub-layer are masked, before and after."""
    config = plays(sparsity=0.669)  # more than is masked here
    state, plan = opening_of(config, None, None)
    model = state.model
    masks = {n: m.clone() for n, m in model.masks.items()}
    for group in plan.layout.structure.groups:
        gone = slice(0, None) if group.path.endswith("layers.1.mlp") else slice(0, None, 2)
        for part in group.parts:
            lines = part.index[gone].reshape(-1)
            masks[part.tensor].index_fill_(int(part.axis != "row"), lines, False)
    model = model.under(masks)
    small, smaller = shrunk(model, plan)
    return config, model, small, plan, smaller


def test_a_shrunk_model_is_the_same_function_with_fewer_numbers(halved):
    config, whole, small, plan, smaller = halved
    assert shrunk(small, smaller) == (small, smaller), "again there is nothing to cut"
    assert smaller.layout.parameters < plan.layout.parameters
    assert count_kept(small.masks) == count_kept(whole.masks)
    assert all(m.all() for m in small.masks.values())
    logits = []
    for at, edits in ((whole, ()), (small, small.edits)):
        model, _ = shaped(config, edits)
        load_into(model, at.weights)
        with torch.no_grad():
            logits.append(model.eval()(torch.arange(12)[None]).logits)
    assert torch.allclose(*logits, atol=1e-5 * float(logits[0].abs().max()))


def test_a_shrunk_model_goes_back_to_where_it_was(halved):
    _, whole, small, _, smaller = halved
    masks = smaller.layout.in_origin(small.masks)
    assert masks.keys() == whole.masks.keys()
    assert all(torch.equal(masks[n], m) for n, m in whole.masks.items())
    weights = smaller.layout.in_origin(small.weights)
    assert all(torch.equal(weights[n], whole.weights[n]) for n in whole.masks)


@pytest.mark.slow
def test_every_side_builds_the_same_shape(halved):
    config, _, small, _, smaller = halved
    host = with_edits(house_of(config), small.edits)
    assert shapes_of(state_of(host.model)) == dict(smaller.layout.shapes)
    assert layout_at(config, small.edits).shapes == smaller.layout.shapes
    assert with_edits(host, small.edits) is host


def test_the_newest_few_models_are_kept(halved):
    """Tiers of one model are asked in turn, in every round."""
    config, _, small, _, _ = halved
    host = build_host(config)
    first = with_edits(host, small.edits)
    assert with_edits(host, small.edits) is first
    others = [(Edit("vocab", "model.embed_tokens", tuple(range(n)), "0"),) for n in (20, 30, 40)]
    assert with_edits(host, others[0]) is with_edits(host, others[0])
    assert with_edits(host, small.edits) is first
    for edits in others[1:]:
        with_edits(host, edits)
    assert with_edits(host, small.edits) is first, "the one used least lately goes"
    assert others[0] not in host.rebuilt
    assert len(host.rebuilt) == REBUILT


def test_a_question_carries_the_shape_to_those_who_lack_it(halved):
    _, model, small, plan, smaller = halved
    packet = encode_question(Round(1, smaller).question(small, "tune", lr=0.1), "fp32")
    back = decode_question(packet, smaller.layout)
    assert back.edits == small.edits
    assert all(torch.equal(back.weights[n], w) for n, w in small.weights.items())
    whole = encode_question(Round(1, plan).question(model, "tune", lr=0.1), "fp32")
    assert len(packet["values"]) < len(whole["values"])


CASES = [
    ("shakespeare", "llama", "neuron", "magnitude", 0.3),
    ("shakespeare", "llama", "neuron", "taylor", 0.3),
    ("shakespeare", "gpt2", "neuron", "magnitude", 0.3),
    ("shakespeare", "llama-gqa", "head", "taylor", 0.15),
    ("shakespeare", "llama-tied", "layer", "block_influence", 0.5),
    ("shakespeare", "gpt2", "sublayer", "wanda", 0.4),
    ("shakespeare-masked", "bert", "layer", "block_influence", 0.5),
    ("shakespeare-masked", "roberta", "head", "magnitude", 0.15),
    ("shakespeare-restore", "t5", "layer", "block_influence", 0.3),
    ("shakespeare-restore", "t5-gated", "sublayer", "magnitude", 0.3),
    ("digits", "cnn", "channel", "magnitude", 0.4),
    ("digits", "cnn", "channel", "taylor", 0.4),
    ("digits", "cnn", "channel", "ablation", 0.4),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("task", "model", "unit", "score", "sparsity"), CASES)
def test_shrinking_every_time_chooses_the_same_units_and_sends_less(
    task, model, unit, score, sparsity
):
    keys = {"task": task, "model": model, "unit": unit, "score": score, "sparsity": sparsity}
    keys |= {"scope": "layer"} if (task, score) == ("digits", "magnitude") else {}
    keys |= {"width": 32} if "t5" in model else {}
    runs = [played(plays(shrink=s, **keys)) for s in ("every", "never")]
    every, never = (run.summary for run in runs)
    for same in ("mask_digest", "sparsity", "flops_kept", "kept_parameters"):
        assert every[same] == never[same]
    assert every["parameters_left"] < 0.97 * never["parameters_left"]
    assert all(m.all() for m in runs[0].state.masks.values()), "nothing masked is left"
    final = [summary["quality"]["final"]["loss"] for summary in (every, never)]
    assert final[0] == pytest.approx(final[1], rel=1e-5)
    # Values of removed weights travel in neither; without biases the answers weigh the same, but
    # for the decimals of their losses.
    assert every["bytes_down"] < never["bytes_down"]
    assert every["bytes_up"] <= (0.9999 if model == "gpt2" else 1.0001) * never["bytes_up"]


@pytest.mark.slow
def test_shrinking_at_the_end_is_the_run_without_it():
    end, never = (played(plays(shrink=s)) for s in ("end", "never"))
    assert [{**r, "arm": ""} for r in end.rows] == [{**r, "arm": ""} for r in never.rows]
    assert end.summary["parameters_left"] < never.summary["parameters_left"]


@pytest.mark.slow
def test_a_folder_is_loaded_in_its_shape(tmp_path):
    config = plays(shrink="every", score="magnitude", rounds=2, end=2)
    result = federate(config, inline_port(build_host(config)), folder=tmp_path / "run")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        here = result.model(ids).logits
        for folder in ("run", "run/model"):
            model = load(tmp_path / folder)
            assert shapes_of(state_of(model)) == shapes_of(state_of(result.model))
            assert torch.equal(model(ids).logits, here)


@pytest.mark.slow
def test_resuming_a_shrunk_run_gives_the_same_bits(tmp_path):
    config = plays(shrink="every")
    cut_short(config, tmp_path / "run", 2)
    assert load_state(tmp_path / "run" / "checkpoint" / "pruned.safetensors", memories_of("")).edits
    again = federate(config, inline_port(house_of(config)), folder=tmp_path / "run", resume=True)
    assert again.rows[-1] == played(config).rows[-1]


def test_the_plan_follows_a_state(halved):
    config, _, small, plan, smaller = halved
    assert fitted(smaller, small.edits) is smaller
    port = inline_port(house_of(config))
    end, row = list(loop(State(2, small), plan, port))[-1]
    assert end.edits
    assert row["parameters"] <= smaller.layout.parameters
    assert "shrink" in to_toml(config)


CHANNELS = {"unit": "channel", "sparsity": 0.5}
CUT: dict[str, dict[str, Any]] = {
    "sparsegpt": {"score": "sparsegpt", "sparsity": 0.996, "schedule": "cubic"},
    "random": {**CHANNELS, "score": "random"},
    "perturbation": {**CHANNELS, "score": "perturbation", "probes": 2},
    "outputs": {**CHANNELS, "score": "magnitude", "reconstruct": "outputs"},
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("method", CUT)
def test_what_counts_or_draws_does_so_in_the_shapes_before_the_cut(method):
    """Law 8: the same choices, whether what went has left the model or is there as zeros."""
    small = {"clients": 2, "cohort": 2, "hosts": 1, "rounds": 4, "warmup": 0, "end": 3}
    keys = {**small, "schedule": "linear", "local_steps": 1, "agreement": False, **CUT[method]}
    cut, whole = (played(tiny(**keys, shrink=shrink)) for shrink in ("every", "never"))
    assert len({row["parameters"] for row in cut.rows}) > 1, "cut, and pruned again"
    for mine, other in zip(cut.rows, whole.rows, strict=True):
        assert mine["mask_digest"] == other["mask_digest"]
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_model_of_which_nothing_is_left_is_not_cut():
    config = plays(sparsity=None, threshold=1e9, floor=0, shrink="every", unit="weight", end=2)
    state = federate(config).state
    assert not any(m.any() for m in state.masks.values())
    assert not state.edits
