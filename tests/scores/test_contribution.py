from typing import Any

import pytest
import torch
from specimens import BLOCKS, Specimen, built, probe_of, taken
from torch import Tensor, nn

from fedprune.scores.catalog import SCORES
from fedprune.selection.units import unit_labels
from fedprune.structure.low_rank_layers import reads
from fedprune.tasks.task import Part
from tests.runs import played, tiny

CONTRIBUTION = SCORES["contribution"]


def gate_gradients(s: Specimen, part: Part, kind: str) -> list[Tensor]:
    """∂L/∂g of gates put before the reading layers, by group: the oracle."""
    gates, hooks = [], []
    for group in (g for g in s.layout.structure.groups if g.kind == kind):
        reader = next(p for p in group.parts if p.axis == "column")
        gate = torch.ones(len(reader.index), dtype=torch.float64, requires_grad=True)
        layer = s.model.get_submodule(reader.tensor.removesuffix(".weight"))

        def gated(_: nn.Module, args: Any, gate: Tensor = gate, at: Tensor = reader.index) -> Any:
            wide = torch.ones(at.numel(), dtype=args[0].dtype)
            wide = wide.index_put((at.reshape(-1),), gate.repeat_interleave(at.shape[1]))
            return (args[0] * wide, *args[1:])

        hooks.append(reads(layer).register_forward_pre_hook(gated))
        gates.append(gate)
    found = torch.autograd.grad(s.loss(s.model, part).total, gates)
    for hook in hooks:
        hook.remove()
    return list(found)


@pytest.mark.parametrize("kind", ["head", "neuron"])
@pytest.mark.parametrize("family", BLOCKS)
def test_it_is_the_gradient_of_a_gate(family, kind):
    s = built(family)
    part = s.shards[2]
    scores = CONTRIBUTION.finalise(taken(CONTRIBUTION, s, [part], size=4, unit=kind))
    labels = unit_labels(s.layout, kind)
    expected = torch.cat(gate_gradients(s, part, kind)).abs() / (s.labels * len(part["labels"]))
    assert float(expected.max()) > 0
    for unit, value in enumerate(expected.tolist()):
        total = sum(float(scores[n][label == unit].sum()) for n, label in labels.items())
        assert total == pytest.approx(value, rel=1e-5, abs=1e-7 * float(expected.max()))


def test_a_client_sends_one_number_a_unit():
    s = built("gpt2")
    probe = probe_of(s, [s.shards[0]], unit="neuron")
    sums = CONTRIBUTION.asks[0].collect(probe)
    units = sum(len(g.parts[0].index) for g in s.layout.structure.groups if g.kind == "neuron")
    assert {n: t.numel() for n, t in sums.items()} == {"gates": units}


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "sparsity"), [("head-neuron", 0.3), ("sublayer", 0.6)])
def test_it_decides_a_run(unit, sparsity):
    keys = {"task": "shakespeare", "clients": 2, "cohort": 2, "length": 16, "rounds": 1}
    keys |= {"schedule": "one-shot", "warmup": 0, "end": 1, "unit": unit, "sparsity": sparsity}
    keys |= {"local_steps": 1, "score_examples": 64}
    runs = [played(tiny(score=score, **keys)).summary for score in ("contribution", "taylor")]
    assert runs[0]["sparsity"] > 0.1
    # What a client sends to score: a number a unit, and its votes, instead of one a weight.
    assert runs[0]["bytes_up"] < 0.8 * runs[1]["bytes_up"]
