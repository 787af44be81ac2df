"""Operations that the simulated clock counts, against those that torch counts as they are done."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from fedprune import SCORES
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.opening import opening_of
from fedprune.protocol.messages import Question
from fedprune.server.work import work_for
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


def operations(keys, *several):
    """Counted and executed operations of each of several questions to one client."""
    config = configure(keys)
    state, plan = opening_of(config, None, None)
    port = inline_port(house_of(config))
    who = max(port.training())
    for asked in several:
        if asked.pop("given", False):
            asked["given"] = {n: state.weights[n] for n in plan.layout.prunable}
        question = Question(round=1, weights=state.weights, masks=state.masks, **asked)
        with FlopCounterMode(display=False) as counter:
            port.ask(question, [who])
        yield work_for(question, port.present()[who], plan), counter.get_total_flops()


def passes(keys, **asked):
    """The same of one question, in forward passes of this model."""
    forward = {"kind": "score", "score": "wanda"}
    one, found = operations(keys, forward, {"kind": "score", **asked})
    return found[0] / one[0], found[1] / one[1]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("score", "i"), ASKS)
def test_a_score_is_counted_as_it_is_executed(score, i):
    units = SCORES[score].units
    keys = WITH.get(score, {} if not units or "weight" in units else {"unit": units[0]})
    given = SCORES[score].asks[i].given is not None
    counted, executed = passes({**KEYS, "score": score, **keys}, score=score, ask=i, given=given)
    assert 0.88 * executed < counted < 1.1 * executed


def test_a_backward_pass_ends_at_the_first_tensor_that_is_asked_for():
    last = opening_of(configure(KEYS), None, None)[1].layout.prunable[-1]
    counted, executed = passes(KEYS, score="gradient", names=(last,))
    assert 0.9 * executed < counted < 1.1 * executed
    assert counted < 2
