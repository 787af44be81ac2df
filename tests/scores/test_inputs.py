import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from specimens import BLOCKS, Specimen, built, evidence_of, probe_of, settled
from torch import Tensor, nn

from fedprune.scores.catalog import SCORES
from fedprune.scores.inputs import inputs_ask, inputs_of, products, rows_of, squares
from fedprune.scores.score import Evidence
from fedprune.structure.edits import Edit
from fedprune.structure.groups import input_of
from fedprune.structure.layout import Layout, as_rows, layout_of
from fedprune.structure.surgery import reshaped
from fedprune.tasks.task import Loss, Part, batches
from fedprune.tensors.named import full_masks


def given_to(s: Specimen, part: Part) -> dict[str, Tensor]:
    """What every prunable layer is called with, (rows, columns), noted down call by call."""
    seen: dict[str, list[Tensor]] = {n: [] for n in s.layout.prunable}
    hooks = [
        s.model.get_submodule(n.rpartition(".")[0]).register_forward_pre_hook(
            lambda _m, args, n=n: seen[n].append(args[0].flatten(0, -2))
        )
        for n in seen
    ]
    s.loss(s.model, part)
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(xs).detach() for n, xs in seen.items()}


@pytest.mark.parametrize("family", BLOCKS)
def test_wanda_and_ria_are_what_their_authors_compute(family):
    s = built(family)
    part = s.shards[1]
    found = {}
    for score in ("wanda", "ria"):
        sums = SCORES[score].asks[0].collect(probe_of(s, batches(part, 4)))
        found[score] = SCORES[score].finalise(evidence_of(s, sums, 1.0))
    for name, x in given_to(s, part).items():
        w = as_rows(s.layout, name, s.weights[name]).abs()
        norms = x.square().mean(0).sqrt()
        relative = w / w.sum(0, keepdim=True) + w / w.sum(1, keepdim=True)
        for score, expected in (("wanda", w * norms), ("ria", relative * norms**0.5)):
            rows = as_rows(s.layout, name, found[score][name])
            np.testing.assert_allclose(rows, expected, rtol=1e-6)
        source = input_of(s.layout, s.layout.prunable)[name]
        assert sums[inputs_of(source)].shape == (w.shape[1],), "one number an input channel"
        assert (inputs_of(name) in sums) == (name == source), "of each input once"


@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("which", [slice(0, None, 2), slice(1, None, 3), slice(None)])
def test_of_a_layer_in_two_factors_the_first_reads_what_its_neighbours_read(family, which):
    s = built(family)
    spared = {n for n, _ in s.model.named_parameters()} - {*s.layout.prunable}
    paths = [n.rpartition(".")[0] for n in s.layout.prunable][which]
    model = reshaped(copy.deepcopy(s.model), [Edit("rank", path, (2,)) for path in paths])
    layout = layout_of(model, exclude=[n for n in spared if n in dict(model.named_parameters())])
    masks = full_masks(model.state_dict(), layout.prunable)
    s = replace(s, model=model, layout=layout, masks=masks)
    part = s.shards[1]
    sums = SCORES["wanda"].asks[0].collect(probe_of(s, batches(part, 4)))
    sources = input_of(layout, layout.prunable)
    for name, x in given_to(s, part).items():
        torch.testing.assert_close(sums[inputs_of(sources[name])], x.square().sum(0))
    assert all(source == n for n, source in sources.items() if n.endswith(".1.weight"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wanda_by_row_ranks_what_is_alive_in_each_row(family):
    s = built(family)
    sums = SCORES["wanda"].asks[0].collect(probe_of(s, batches(s.shards[1], 4)))
    evidence = evidence_of(s, sums, 1.0)
    wanda, ranks = SCORES["wanda"].finalise(evidence), SCORES["wanda_by_row"].finalise(evidence)
    for name in s.layout.prunable:
        rows = (as_rows(s.layout, name, t[name]).numpy() for t in (wanda, ranks, s.masks))
        for score, rank, alive in zip(*rows, strict=True):
            expected = np.zeros(len(score))
            if alive.any():
                expected[alive] = rankdata(score[alive]) / alive.sum()
            np.testing.assert_allclose(rank, expected, rtol=1e-12)


@pytest.mark.parametrize("family", BLOCKS)
def test_what_is_said_to_read_one_input_does(family):
    s = built(family)
    given = given_to(s, s.shards[0])
    for name, source in input_of(s.layout, s.layout.prunable).items():
        assert torch.equal(given[name], given[source])
    within = s.layout.prunable[1:]
    assert set(input_of(s.layout, within).values()) <= set(within), "among those asked about"


def test_a_layer_of_a_kind_that_reads_something_else_is_refused():
    s = built("llama")
    gate = s.model.get_submodule("model.layers.0.mlp.up_proj")
    hook = gate.register_forward_pre_hook(lambda _m, args: (args[0] * 2,))
    with pytest.raises(ValueError, match=r"up_proj.weight does not read what .*gate_proj"):
        SCORES["wanda"].asks[0].collect(probe_of(s, batches(s.shards[0], 4)))
    hook.remove()


def windows(x: Tensor, padding: int) -> Tensor:
    """What a 3x3 convolution covers at each place of each image, by loops."""
    x = nn.functional.pad(x, (padding,) * 4)
    places = itertools.product(range(x.shape[2] - 2), range(x.shape[3] - 2))
    return torch.cat([x[:, :, i : i + 3, j : j + 3].flatten(1) for i, j in places])


def test_a_convolution_has_an_input_for_every_place_in_its_kernel():
    s = built("cnn")
    part = s.shards[0]
    ask = inputs_ask(products, square=True)
    sums = ask.collect(probe_of(s, batches(part, 3)))
    name = "features.0.weight"
    rows = windows(part["images"], 1)
    assert sums[rows_of(name)].item() == len(rows) == 4 * 64
    assert torch.allclose(sums[inputs_of(name)], rows.t() @ rows)
    alone = inputs_ask(squares).collect(probe_of(s, [part]))
    assert torch.allclose(alone[inputs_of(name)], rows.square().sum(0))


class Twice(nn.Module):
    """A layer used twice, another that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def summed(model: nn.Module, batch: Part) -> Loss:
    return Loss(model(batch["x"]).sum(), len(batch["x"]), 0)


# The layer sees (1, 3), then (3, -6); and (0, 0) twice.
BY_HAND = {
    "wanda": [1 * (45 / 4) ** 0.5, 2 * (45 / 4) ** 0.5],
    "activation": [9 / 4, 9 / 4],
    "activity": [0.5, 0.5],
}


@pytest.mark.parametrize(("name", "second"), BY_HAND.items())
def test_uses_add_up_and_what_nothing_goes_through_scores_zero(name, second):
    part = {"x": torch.tensor([[1.0, 3.0], [0.0, 0.0]]).double(), "labels": torch.zeros(2)}
    s = settled(Twice(), summed, (part,), 1)
    with torch.no_grad():
        s.model.layer.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -2.0]]))
    sums = SCORES[name].asks[0].collect(probe_of(s, [part]))
    scores = SCORES[name].finalise(evidence_of(s, sums, 1.0))
    assert scores["layer.weight"][:, 1].tolist() == pytest.approx(second)
    assert scores["idle.weight"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("model", "include", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), ("1.weight",), "1.weight"),
        (nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), (), "0.weight"),
        (nn.MultiheadAttention(2, 1), (), "out_proj.weight"),
    ],
    ids=["no layer", "grouped", "used without its layer"],
)
def test_what_has_no_inputs_to_measure_is_refused(model, include, name):
    layout = layout_of(model, include=include)
    ask = SCORES["wanda"].asks[0]
    with pytest.raises(ValueError, match=rf"^score: {name} has no inputs.*allowed: .*$"):  # noqa: PT012
        ask.shapes(layout, layout.prunable, "weight", 0)
        with ask.watch(model, layout, layout.prunable):
            pass


def test_a_square_that_noise_brought_below_0_counts_as_0():
    """Of a sum with noise; its root is no number."""
    layout = Layout({"w": torch.Size([3, 2])}, ("w",), (), {})
    sums = {inputs_of("w"): torch.tensor([-1.0, 8.0]), rows_of("w"): torch.tensor([2.0])}
    weights, masks = {"w": torch.ones(3, 2)}, {"w": torch.ones(3, 2, dtype=torch.bool)}
    evidence = Evidence(sums, 2.0, weights, masks, layout, torch.Generator())
    assert SCORES["wanda"].finalise(evidence)["w"].tolist() == [[0.0, 2.0]] * 3
