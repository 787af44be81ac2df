"""Operations that the simulated clock counts, against those that torch counts as they are done."""

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from fedprune import SCORES, TASKS
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.opening import opening_of
from fedprune.protocol.messages import Question
from fedprune.server.work import work_for
from fedprune.structure.attention import eager
from fedprune.tasks.encoder import frozen_below
from tests.gallery import SHAKESPEARE
from tests.runs import house_of

KEYS = {
    **{**SHAKESPEARE, "model": "llama-gqa", "depth": 2, "score_examples": 4, "sparsity": 0.3},
    **{"schedule": "one-shot", "end": 1, "rounds": 1},
}
WITH = {
    "ablation": {"unit": "row"},
    "contribution": {"unit": "head-neuron"},
    "perturbation": {"probes": 4},
}
ASKS = [(n, i) for n, s in SCORES.items() if not s.tuning for i in range(len(s.asks))]
"""Every question of every score that asks clients in a pass of its own."""


@pytest.fixture
def fleet(tmp_path):
    """A file of devices, without which nothing is counted."""
    path = tmp_path / "fleet.toml"
    path.write_text("[any]\nshare = 1\nflops = 1e9\nup = 1e6\ndown = 1e6")
    return {"profiles": str(path)}


def operations(keys, *several):
    """Counted and executed operations of each of several questions to one client."""
    config = configure(keys)
    state, plan = opening_of(config, None, None)
    host = house_of(config)
    port = inline_port(host)
    who = max(port.training())
    for asked in several:
        if asked.pop("given", False):
            asked["given"] = {n: state.weights[n] for n in plan.layout.prunable}
        have = {"weights": state.weights, "masks": state.masks, "adapters": state.model.adapters}
        question = Question(round=1, **have, **asked)
        # In the fused one torch's counter sees no product.
        with eager(host.model), FlopCounterMode(display=False) as counter:
            assert not port.ask(question, [who]).failures
        yield work_for(question, port.present()[who], plan), counter.get_total_flops()


TRANSFORMER = {"depth": 2, "width": 32, "length": 16, "local_steps": 3, "batch_size": 4}
LONG = {"task": "shakespeare", "length": 96, "seed": 2}
KINDS = {
    "perceptron": {"task": "digits", "model": "mlp"},
    "convolutions": {"task": "digits", "model": "cnn"},
    "bert": {**TRANSFORMER, "task": "shakespeare-masked", "model": "bert"},
    "llama": {**TRANSFORMER, "task": "shakespeare", "model": "llama"},
    "t5": {**TRANSFORMER, "task": "shakespeare-restore", "model": "t5"},
    "gpt2, long": {**TRANSFORMER, **LONG, "model": "gpt2"},
    "computed again": {**TRANSFORMER, **LONG, "model": "llama-gqa", "checkpointing": True},
    "half is frozen": {**TRANSFORMER, "task": "shakespeare-masked", "model": "bert", "depth": 4},
    "adapters": {**TRANSFORMER, "task": "shakespeare", "model": "llama", "adapters": "lora"},
}
ONE = {
    "engine": "inline",
    "clients": 3,
    "cohort": 3,
    "hosts": 1,
    "rounds": 1,
    "warmup": 0,
    "end": 1,
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", KINDS)
def test_passes_and_steps_are_counted_as_they_are_executed(kind, fleet, monkeypatch):
    masked = TASKS["shakespeare-masked"]
    frozen = replace(masked, model=lambda config: frozen_below(masked.model(config), 2))
    if kind == "half is frozen":
        monkeypatch.setitem(TASKS, "shakespeare-masked", frozen)
    keys = {**ONE, **fleet, "sparsity": 0.3, "score_examples": 4, "agreement": False, **KINDS[kind]}
    step, back = {"kind": "tune", "lr": 0.01}, {"kind": "score", "score": "taylor"}
    found = operations(keys, {"kind": "score", "score": "wanda"}, step, back)
    # Factors are not counted, and who only scores takes no gradient of a head.
    near = [0.12] * 3 if kind == "adapters" else [1e-6, 1e-6, 0.1]
    for (counted, executed), rel in zip(found, near, strict=True):
        assert counted == pytest.approx(executed, rel=rel)


def passes(keys, **asked):
    """The same of one question, in forward passes of this model."""
    forward = {"kind": "score", "score": "wanda"}
    one, found = operations(keys, forward, {"kind": "score", **asked})
    return found[0] / one[0], found[1] / one[1]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("score", "i"), ASKS)
def test_a_score_is_counted_as_it_is_executed(score, i, fleet):
    units = SCORES[score].units
    keys = WITH.get(score, {} if not units or "weight" in units else {"unit": units[0]})
    given = SCORES[score].asks[i].given is not None
    keys = {**KEYS, **fleet, "score": score, **keys}
    counted, executed = passes(keys, score=score, ask=i, given=given)
    # Not counted: how block similarity projects outputs. Counted: gradients of a head (GraSP's).
    assert 0.84 * executed < counted < 1.12 * executed


def test_a_backward_pass_ends_at_the_first_tensor_that_is_asked_for(fleet):
    last = opening_of(configure(KEYS), None, None)[1].layout.prunable[-1]
    counted, executed = passes({**KEYS, **fleet}, score="gradient", names=(last,))
    assert 0.9 * executed < counted < 1.1 * executed
    assert counted < 2
