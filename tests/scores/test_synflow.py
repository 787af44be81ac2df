import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from specimens import Specimen, built, evidence_of, settled
from torch import Tensor, nn

from fedprune.scores.synflow import synflow
from fedprune.tasks.task import Loss
from fedprune.tensors.named import Tensors, digest


def flow_of(s: Specimen) -> float:
    """R, by a copy of the model made positive by hand."""
    model = copy.deepcopy(s.model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.zeros_like(p) if name.endswith("bias") else p.abs())
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.zero_()
        return float(model(torch.ones(1, 1, 8, 8).double()).sum())


def test_what_flows_through_every_layer_is_the_same():
    """Conservation (Tanaka et al. 2020, theorem 2 for layers): the cut of every layer is R."""
    s = built("cnn")
    before = digest(s.model.state_dict())
    scores = synflow(evidence_of(s, {}, 1.0))
    assert all(float(t.min()) >= 0.0 and t.dtype == torch.float64 for t in scores.values())
    for name, score in scores.items():
        assert float(score.sum()) == pytest.approx(flow_of(s), rel=1e-12), name
        assert not score[~s.masks[name]].any(), "nothing flows through what is removed"
    assert digest(s.model.state_dict()) == before


def chain(*modules: nn.Module) -> Specimen:
    part = {"x": torch.zeros(2, 3), "labels": torch.zeros(2).long()}
    dummy = {n: t[:1] for n, t in part.items()}
    loss = lambda m, b: Loss(m(b["x"]).sum(), len(b["x"]), 0)  # noqa: E731
    return settled(nn.Sequential(*modules), loss, (part,), 1, dummy=dummy)


def test_two_linear_layers_by_hand():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        s = chain(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    a, b = (w.abs() for w in s.weights.values())
    scores: Tensors = synflow(evidence_of(s, {}, 1.0))
    assert torch.allclose(scores["0.weight"], a * b.sum(0)[:, None])
    assert torch.allclose(scores["2.weight"], b * a.sum(1)[None, :])


def test_a_product_too_small_for_float32_still_ranks():
    layers = [nn.Linear(3, 3, bias=False) for _ in range(20)]
    s = chain(*layers)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.tensor([[1e-4, 2e-4, 3e-4]] * 3))
    row = synflow(evidence_of(s, {}, 1.0))["0.weight"][0]
    assert (row / row[0]).tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert 0.0 < float(row.max()) < 1e-60


class Bent(nn.Linear):
    """What no list of kinds shows: a function inside of an allowed kind."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(3, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(super().forward(x))


class Bare(nn.Module):
    """A weight that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.inner = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.w)


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.LayerNorm(3), "1 is a LayerNorm, not homogeneous"),
        (nn.RMSNorm(3), "1 is a RMSNorm, not homogeneous"),
        (nn.GELU(), "1 is a GELU, not homogeneous"),
        (nn.Softmax(-1), "1 is a Softmax, not homogeneous"),
        (Bare(), "1 is a Bare, not homogeneous"),
        (Bent(nn.functional.gelu), "Sequential does not scale with its input"),
        (Bent(lambda x: x + 1e-9), "Sequential does not scale with its input"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_networks_that_are_not_homogeneous_are_refused(module, named):
    s = chain(nn.Linear(3, 3), module)
    with pytest.raises(ValueError, match=f"^score='synflow': {named}; allowed: networks of .*$"):
        synflow(evidence_of(s, {}, 1.0))


@pytest.mark.parametrize("dummy", [None, {"tokens": torch.zeros(1, 3).long()}])
def test_without_an_example_there_is_no_shape(dummy):
    s = chain(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"^score='synflow': .*allowed: .*$"):
        synflow(replace(evidence_of(s, {}, 1.0), dummy=dummy))
