"""Which tokens a client's text holds, from what it releases of a causal language model.

A row of the embeddings has a gradient only where its token occurs (Melis et al. 2019, arXiv
1805.04049, sect. 4.1). Where embeddings are not released, as scores leave them out by default, the
gradient of a layer that reads them has its rows in the span of the tokens' vectors (DAGER, Petrov
et al. 2024, arXiv 2405.15586, sect. 4), and the energies of its columns, or Σ x² itself, are a sum
of the squares of those vectors with weights that are not negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedprune.attacks.exposed import Exposed
from fedprune.attacks.scene import Scene
from fedprune.scores.inputs import inputs_of
from fedprune.structure.layers import layers_of


def evidence(scene: Scene, seen: Exposed, table: str, readers: Sequence[str]) -> Tensor:
    """How much speaks for each token, (V,) float64: only the order means something.

    `readers`: weights of linear layers that share an input which depends on one token alone
    (LLaMA's first projections: positions come later).
    """
    if table in seen.values:
        return seen.values[table].abs().sum(1)
    vectors = token_vectors(scene, table, readers[0])
    if scene.quantity.signed:
        rows = torch.cat([_of_size_one(seen.values[r]) for r in readers])
        return -_outside(rows, vectors, scene.host.config.length or 64)
    # A sum over an input is sent once, under the name of the first layer that has it.
    there = [r for r in readers if r in seen.values or inputs_of(r) in seen.values]
    energies = sum(_of_size_one(_energies(scene, seen, r)) for r in there)
    assert isinstance(energies, Tensor)
    return _in_columns(energies, vectors.square())


def found_tokens(likely: Tensor, count: int) -> list[int]:
    """The ids for which most speaks, `count` of them, ascending."""
    return sorted(likely.topk(count).indices.tolist())


def token_vectors(scene: Scene, table: str, reader: str) -> Tensor:
    """What goes into the layer for each token by itself, (V, width) float64."""
    model = scene.model().double().eval()
    (layer,) = layers_of(model, [reader])[reader]
    inputs: list[Tensor] = []
    size = scene.host.layout.shapes[table][0]
    noted = layer.register_forward_hook(lambda _m, x, _y: inputs.append(x[0].detach()))
    with noted, torch.no_grad():
        model(input_ids=torch.arange(size).unsqueeze(1))
    return inputs[0].reshape(size, -1)


def _of_size_one(values: Tensor) -> Tensor:
    out: Tensor = values / values.norm().clamp(min=1e-30)
    return out


def _outside(gradient: Tensor, vectors: Tensor, most: int) -> Tensor:
    """How much of each token's vector lies outside of the span of the gradient's rows, 0 to 1.

    A text of n tokens spans n dimensions at most; smaller singular values than 1e-5 of the largest
    are rounding.
    """
    values, basis = torch.linalg.svd(gradient, full_matrices=False)[1:]
    rank = min(most, int((values > 1e-5 * values[0]).sum()), len(values) - 1)
    unit = nn.functional.normalize(vectors, dim=1)
    out: Tensor = (unit - unit @ basis[:rank].t() @ basis[:rank]).norm(dim=1)
    return out


def _energies(scene: Scene, seen: Exposed, reader: str) -> Tensor:
    """What stands for Σ x² of every column of the layer's input, up to a factor."""
    if inputs_of(reader) in seen.values:
        return seen.values[inputs_of(reader)].clamp(min=0)
    values = seen.values[reader].clamp(min=0)
    w = scene.question.weights[reader].double()
    if not scene.quantity.votes:
        # What a gradient of 1 would be released as is divided out.
        values = values / scene.quantity.of(w, torch.ones_like(w)).clamp(min=1e-3)
    squares = values if scene.quantity.root or scene.quantity.votes else values.square()
    return squares.sum(0)


def _in_columns(energies: Tensor, squares: Tensor) -> Tensor:
    """Weights >= 0 of the tokens whose squares add up to the energies, by least squares."""
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise ValueError(
            "attack: needs the package scipy; allowed: pip install 'fedprune[privacy]'"
        ) from None
    weights, _ = nnls(squares.t().numpy(), energies.numpy(), maxiter=10_000)
    return torch.from_numpy(weights)
