"""DepthFL and FedPruner against their loops in torch: blocks on a residual stream, one head."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from fedprune.methods.fedpruner import linked_groups
from fedprune.options.refusal import ConfigError
from fedprune.scores.block_similarity import ASK_BLOCK_SIMILARITY, PROJECTED, similarities
from fedprune.scores.score import Probe
from fedprune.server.state import State
from fedprune.structure.groups import Block, Structure
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.task import Part, batches
from fedprune.tensors.named import Tensors
from tests.methods.test_regimes import KEYS
from tests.remembering import Stack, apart, round_of_blocks
from tests.runs import house_of, overheard, tiny

DEPTHS = (1.0, 0.5, 0.3)
BLOCKS = (3, 2, 1)


def flows(model: Stack, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What goes into each block, and what comes out of it."""
    out = []
    for block in model.blocks:
        out.append((x, block(x)))
        x = x + block(x)
    return out


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """By kernels of examples, as it is defined; not by products of features."""
    n = len(x)
    centre = torch.eye(n).double() - 1 / n
    k, other = (centre @ (z @ z.T) @ centre for z in (x, y))
    return float((k * other).sum() / (k.norm() * other.norm()))


def stays_of(alike: np.ndarray, influence: list[float], many: int) -> set[int]:
    """Of three blocks: all, none merged but the closest two, or the one that turns most."""
    if many == 3:
        return {0, 1, 2}
    if many == 1:
        return {int(np.argmax(influence))}
    one, other = max(combinations(range(3), 2), key=lambda p: alike[p])
    (third,) = {0, 1, 2} - {one, other}
    return {third, one if influence[one] >= influence[other] else other}


def run(method: str, first: str) -> tuple[Any, Tensors, list[State], list[Part]]:
    """A run of stacks; the weights in its first question of a kind; states; what clients have."""
    keys = {**KEYS, "task": "stack", "lr": 0.01, "sparsity": 0.0}
    config = tiny(**keys, method=method, method_options={"depths": DEPTHS})
    result, asked, states = overheard(config)
    scored = [who for q, who, _ in asked if q.kind == "score"]
    assert scored == [[0, 1, 2]] * 2 * (method == "fedpruner"), "once"
    weights = next(q for q, _, _ in asked if q.kind == first).weights
    data = [s.train for s in apart(config)]
    assert len({len(part["x"]) for part in data}) == 3, "of unequal size"
    return result, {n: w.double() for n, w in weights.items()}, states, data


def follow(states: list[State], whole: Tensors, data: list[Part], kept: list[Any]) -> None:
    """Round by round the clients train these blocks, and weights are means over who does."""
    for state in states:
        whole = round_of_blocks(whole, data, kept)
        for n, w in whole.items():
            np.testing.assert_allclose(state.weights[n].numpy(), w.numpy(), atol=1e-6)


def test_a_client_trains_its_first_blocks_and_weights_are_means_over_their_holders():
    result, first, states, data = run("depthfl", "tune")
    follow(states, first, data, [range(many) for many in BLOCKS])
    assert result.summary["own_sparsity"] == (0 + 64 + 128) / 3 / 216
    assert result.summary["clients_have"] == "parts"


def test_a_client_trains_one_of_each_group_of_blocks_and_means_are_over_holders():
    result, first, states, data = run("fedpruner", "score")
    model = Stack().double()
    model.load_state_dict(first)
    with torch.no_grad():
        pairs = flows(model, torch.cat([part["x"] for part in data]).double())
    alike = np.array([[cka(a, b) for _, b in pairs] for _, a in pairs])
    turned = [float((1 - torch.cosine_similarity(x, y, -1)).mean()) for x, y in pairs]
    follow(states, first, data, [stays_of(alike, turned, many) for many in BLOCKS])
    assert result.summary["own_sparsity"] == (0 + 64 + 128) / 3 / 216


def test_groups_are_those_of_average_linkage():
    gen = np.random.default_rng(0)
    for many in range(1, 8):
        drawn = gen.random((8, 8))
        alike = (drawn + drawn.T) / 2
        np.fill_diagonal(alike, 1.0)
        tree = linkage(squareform(1.0 - alike), "average")
        wanted = fcluster(tree, many, "maxclust")
        found = linked_groups(torch.from_numpy(alike), many)
        assert {frozenset(g) for g in found} == {
            frozenset(np.flatnonzero(wanted == i).tolist()) for i in set(wanted)
        }


def test_similarity_is_that_of_the_pooled_examples_and_wider_outputs_are_projected():
    config = tiny(**{**KEYS, "task": "stack", "sparsity": 0.0})
    layout, model = house_of(config).layout, Stack()
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(3))

    def summed(rows: torch.Tensor, size: int) -> torch.Tensor:
        cut = list(batches({"x": rows, "y": torch.zeros(len(rows), 3)}, size))
        loss = lambda m, b: m(b["x"])  # noqa: E731
        (sums,) = ASK_BLOCK_SIMILARITY.collect(
            Probe(model, layout, layout.prunable, cut, loss, {}, seed=5)
        ).values()
        return sums

    parts = summed(x[:100], 7) + summed(x[100:], 50)
    (found,) = similarities({"block_similarity 0": parts})
    outputs = [y.detach().double() for _, y in flows(model, x)]
    wanted = [[cka(a, b) for b in outputs] for a in outputs]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-8)


def test_wide_outputs_are_compared_by_random_projections():
    gen = torch.Generator().manual_seed(4)
    model, wide = Stack(), 4 * PROJECTED
    x = torch.randn(400, wide, generator=gen, dtype=torch.float64)
    model.blocks = torch.nn.ModuleList(torch.nn.Linear(wide, wide).double() for _ in range(3))
    with torch.no_grad():
        for block, part in zip(model.blocks, (1.0, 0.5, 0.0), strict=True):
            block.weight.copy_(torch.randn(wide, wide, generator=gen) * (1 - part))
            block.weight.diagonal().add_(20.0 * part)
        model.blocks[2].load_state_dict(model.blocks[1].state_dict())
    plain = layout_of(model)
    blocks = tuple(Block(f"blocks.{i}", (f"blocks.{i}.weight",)) for i in range(3))
    names = tuple(b.tensors[0] for b in blocks)
    layout = Layout(plain.shapes, plain.prunable, (), {}, plain.kinds, Structure((), blocks))

    def each(m, b):
        for block in m.blocks:
            block(b["x"])

    probe = Probe(model, layout, names, [{"x": x}], each, {}, seed=1)
    (found,) = similarities(ASK_BLOCK_SIMILARITY.collect(probe))
    assert found[1, 2] == 1.0
    exact = cka(model.blocks[0](x).detach(), model.blocks[1](x).detach())
    assert abs(float(found[0, 1]) - exact) < 0.1


def test_without_a_device_for_the_whole_model_nothing_starts(tmp_path):
    (tmp_path / "d.toml").write_text("[a]\nshare=1\nflops=1e9\nup=1e6\ndown=1e6\nmemory=1500\n")
    keys = {**KEYS, "task": "stack", "sparsity": 0.0, "budget": "memory"}
    config = tiny(**keys, method="fedpruner", profiles=str(tmp_path / "d.toml"))
    with pytest.raises(ConfigError, match="memory for the whole model"):
        overheard(config)
