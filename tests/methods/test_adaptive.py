"""An adaptive schedule: what it tries, what it takes, and when it stops."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedprune import Result, RunConfig, federate
from fedprune.client.host import build_host
from fedprune.engines.inline import inline_port
from fedprune.learning.candidates import Candidate
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Port
from fedprune.selection.units import unit_labels
from fedprune.server.state import State
from fedprune.server.watch import Watch
from fedprune.tensors.named import Tensors
from tests.runs import house_of, overheard, played, tiny

Losses = Callable[[Question], list[float]]
PRUNABLE = 12_944
ADAPTIVE = {"schedule": "adaptive", "warmup": 0, "rounds": 5, "end": 5, "local_steps": 1}


def adaptive(**keys: Any) -> RunConfig:
    return tiny(**{**ADAPTIVE, **keys})


def scripted(config: RunConfig, losses: Losses) -> tuple[Result, list[Question], list[State]]:
    """A run whose clients find these mean losses for the candidates; what was asked; states."""
    asked, port = list[Question](), inline_port(house_of(config))

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        asked.append(question)
        if question.kind != "compare":
            return port.ask(question, partitions)
        found = losses(question)
        totals = {f"loss_{i}": 10.0 * x for i, x in enumerate(found)}
        totals |= {f"correct_{i}": 0.0 for i in range(len(found))} | {"count": 10.0}
        return Aggregate(torch.empty(0), 1.0, totals, answered=tuple(partitions))

    result, states = with_states(config, replace(port, ask=ask))
    return result, asked, states


def with_states(config: RunConfig, port: Port) -> tuple[Result, list[State]]:
    """A run and the state after every round, whose masks only shrink."""
    states: list[State] = []
    watch = Watch(row=lambda _row, _seconds, state: states.append(state))
    result = federate(config, port, watch=watch)
    for before, after in pairwise(states):
        assert all(not (after.masks[n] & ~m).any() for n, m in before.masks.items())
    return result, states


def actions(result: Result) -> list[Any]:
    return [row["adaptive"] and row["adaptive"]["action"] for row in result.rows]


def sparsities(result: Result) -> list[float]:
    return [round(row["sparsity"], 3) for row in result.rows]


@pytest.mark.slow
def test_it_goes_as_far_as_the_limit_steps_back_waits_and_widens():
    config = adaptive(tolerance=0.1, candidates=4, sparsity=0.8, rounds=6)
    script = {
        1: [1.0, 1.0, 1.05, 1.2, 1.5],  # 0.2 0.4 0.6 0.8
        2: [1.05, 1.2, 1.2, 1.2, 1.2],  # the reference is still 1.0
        3: [1.2, 1.3, 1.3, 1.3, 1.3],  # beyond the limit by itself
        4: [0.9, 0.95, 1.0, 1.5, 2.0],  # a lower reference: the limit is 0.99
        5: [0.9, 0.9, 0.9, 0.9, 0.9],
    }
    result, _, states = scripted(config, lambda q: script[q.round])
    assert actions(result) == ["prune", "step back", "wait", "prune", "widen", None]
    assert [row["adaptive"]["step"] for row in result.rows[:5]] == [0.8, 0.8, 0.4, 0.4, 0.4]
    assert [row["adaptive"]["took"] for row in result.rows[:5]] == [2, 0, 0, 1, 4]
    assert sparsities(result) == [0.4, 0.4, 0.4, 0.5, 0.8, 0.8]
    limits = [row["adaptive"]["limit"] for row in result.rows[:5]]
    assert limits == pytest.approx([1.1, 1.1, 1.1, 0.99, 0.99])
    assert all(not s.weights[n][~m].any() for s in states for n, m in s.masks.items())


def test_tried_sparsities_are_exact_and_the_first_step_is_plain_selection():
    config = adaptive(candidates=2, sparsity=0.6, rounds=2, end=2, score="magnitude")
    script = {1: [1.0, 1.0, 9.0], 2: [1.0, 9.0, 9.0]}
    result, asked, _ = scripted(config, lambda q: script[q.round])
    tried = [[round(s * PRUNABLE) for s, _ in r["adaptive"]["tried"]] for r in result.rows]
    assert tried[0] == [0, 3883, 7766]
    assert tried[1] == [3883, 5825, 7766]
    once = {"schedule": "one-shot", "end": 1, "rounds": 1, "sparsity": 0.3, "score": "magnitude"}
    plain = played(adaptive(**once))
    assert result.rows[0]["mask_digest"] == plain.rows[0]["mask_digest"]
    assert {q.part for q in asked if q.kind == "compare"} == {"validation"}


def test_it_stops_by_itself_and_asks_nobody_then():
    config = adaptive(candidates=2, rounds=4, end=4)
    result, asked, states = scripted(config, lambda q: [1.0] * len(q.candidates))
    assert actions(result) == ["widen", None, None, None]
    assert sparsities(result) == [0.7] * 4
    assert [row["phase"] for row in result.rows] == ["prune", "recover", "recover", "recover"]
    assert states[-1].memories["adaptive"].pace.done
    assert {q.round for q in asked if q.kind in {"score", "compare"}} == {1}
    assert result.summary["reached"]


@pytest.mark.slow
def test_it_stops_when_tries_get_too_fine():
    config = adaptive(candidates=64, sparsity=0.2)
    result, _, _ = scripted(config, lambda q: [1.0] + [2.0] * (len(q.candidates) - 1))
    assert actions(result) == ["step back", "step back", None, None, None]
    assert sparsities(result) == [0.0] * 5
    assert result.summary["reached"], "nothing went, since nothing was allowed to"


def test_too_few_answers_leave_the_pruning_pending():
    config = adaptive(min_clients=3, tolerance=10.0, rounds=3, end=2, frequency=9)
    result, *_ = overheard(config, lambda q, _: q.kind == "compare" and q.round == 1)
    assert actions(result) == [None, "widen", None]
    assert sparsities(result) == [0.0, 0.7, 0.7]


def additive(costs: Mapping[str, float]) -> Losses:
    """Losses that rise by so much per weight of a tensor that goes."""

    def loss(candidate: Candidate, rungs: Tensors) -> float:
        gone = {n: int(((r > 0) & (r <= candidate.at(n))).sum()) for n, r in rungs.items()}
        return 1.0 + sum(costs.get(n, 0.0) * k for n, k in gone.items())

    return lambda question: [loss(c, question.rungs) for c in question.candidates]


@pytest.mark.slow
def test_layer_by_layer_the_dear_layer_is_spared():
    config = adaptive(adaptive="layer", sparsity=0.6, candidates=3, tolerance=0.05)
    costs = {"features.0.weight": 1.0, "features.4.weight": 1e-3, "hidden.weight": 1e-6}
    result, asked, states = scripted(config, additive(costs))
    kept = {n: float(m.float().mean()) for n, m in states[-1].masks.items()}
    assert kept["features.0.weight"] == kept["features.4.weight"] == 1.0
    assert kept["hidden.weight"] < 0.2
    assert 0.5 < result.rows[-1]["sparsity"] <= 0.6
    told = result.rows[0]["adaptive"]
    sizes = {n: m.numel() for n, m in states[-1].masks.items()}
    assert [layer["name"] for layer in told["layers"]] == list(sizes)
    for layer in told["layers"]:
        for sparsity, loss in layer["tried"]:
            rise = costs[layer["name"]] * sparsity * sizes[layer["name"]]
            assert loss == pytest.approx(1.0 + rise)
    losses = [loss for _, loss in told["tried"]]
    assert losses[told["took"]] <= told["limit"]
    assert [q.round for q in asked if q.kind == "compare"][:2] == [1, 1], "alone, then together"


def test_layer_by_layer_a_step_that_nothing_allows_is_a_step_back():
    config = adaptive(adaptive="layer", tolerance=0.01, rounds=2, end=2)
    dear = additive(dict.fromkeys(house_of(config).layout.prunable, 1.0))
    result, _, _ = scripted(config, dear)
    assert actions(result) == ["step back", "step back"]
    assert [row["adaptive"]["step"] for row in result.rows] == [0.7, 0.35]
    assert sparsities(result) == [0.0, 0.0]


UNITS = [
    {"unit": "head", "sparsity": 0.2},
    {"unit": "neuron", "scope": "layer"},
    {"unit": "sublayer"},
    {"unit": "row"},
    {"unit": "block", "scope": "erk"},
    {"unit": "n:m", "sparsity": 0.5},
    {"unit": "neuron", "adaptive": "layer"},
    {"unit": "head", "adaptive": "layer", "sparsity": 0.2},
    {"scope": "row"},
    {"scope": "owl"},
    {"scope": "patterns", "layers": {"*mlp*": 0.3}},
    {"combine": "votes"},
    {"combine": "median"},
]


WORDS = {"task": "shakespeare", "sparsity": 0.45, "clients": 3, "cohort": 3, "end": 2}
WORDS |= {"candidates": 2}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("keys", UNITS, ids=str)
def test_units_and_scopes_go_through_a_ladder_whole(keys, llama):
    config = adaptive(**{**WORDS, "rounds": 2, "tolerance": 10.0, "shrink": "never", **keys})
    host = build_host(config, llama[0].shards)
    result, _ = with_states(config, inline_port(host))
    assert result.summary["failures"] == 0
    tried = [s for s, _ in result.rows[0]["adaptive"]["tried"]]
    assert tried == sorted(set(tried))
    assert any(not m.all() for m in result.state.masks.values())
    assert "patterns" in keys.values() or result.summary["sparsity"] <= config.sparsity + 1e-4
    if config.unit in {"head", "neuron", "sublayer"}:
        for tensor, label in unit_labels(host.layout, config.unit).items():
            mask = result.state.masks[tensor]
            halved = [mask[label == i] for i in label.unique().tolist() if i >= 0]
            assert all(m.all() or not m.any() for m in halved)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("adaptive_", "tolerance"), [("global", 2e-4), ("layer", 2e-3)])
def test_a_model_that_shrinks_is_given_the_same_choices(adaptive_, tolerance, llama):
    how = {"adaptive": adaptive_, "tolerance": tolerance, "unit": "neuron", "rounds": 3}
    more = {"blend": "layer", "blend_grid": (1.0, 1.5), "moving": "swa"}
    rows = {}
    for shrink in ("never", "every"):
        config = adaptive(**WORDS, **how, **more, shrink=shrink)
        result = federate(config, inline_port(build_host(config, llama[0].shards)))
        assert result.summary["failures"] == 0
        rows[shrink] = result.rows
    for masked, small in zip(*rows.values(), strict=True):
        assert small["sparsity"] == masked["sparsity"]
        assert small["loss"] == pytest.approx(masked["loss"], abs=1e-4)
        if masked["adaptive"]:
            tried = [row["adaptive"]["tried"] for row in (masked, small)]
            assert tried[0] == [pytest.approx(x, abs=1e-4) for x in tried[1]]
    assert rows["every"][-1]["parameters"] < rows["never"][-1]["parameters"]
    assert len(rows["every"][1]["adaptive"]["tried"]) > 1, "candidates of a model that was cut"
