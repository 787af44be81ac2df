"""The private input of a first dense layer, from what is released of its weight: in closed form.

For one example the gradient of a layer's weight is δ xᵀ (Phong et al. 2017, doi
10.1109/TIFS.2017.2787987; Geiping et al. 2020, arXiv 2003.14053, prop. 3.1), so that |g|, g² and
|g·w| have a rank-one factor in x, x² and x too: with inputs that are not negative (images), the
absolute value hides nothing. Sums over n examples have n such factors. Which scale the input has,
and which label, is then what the known model would have answered with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprune.attacks.exposed import Exposed
from fedprune.attacks.scene import Scene
from fedprune.randomness import generator
from fedprune.scores.inputs import inputs_of, rows_of
from fedprune.structure.layers import layers_of
from fedprune.tasks.task import Part

_STEPS = 300


def inverted(scene: Scene, seen: Exposed, name: str, shape: torch.Size, seed: int = 0) -> Part:
    """The inputs that an observer makes of what it sees, and for one client the label.

    `name`: weight of the linear layer that the flat input goes into. `shape`: of one input, without
    the dimension of examples.

    Returns:
        `images` (n, *shape) in 0..1, n the clients in the sum, in no order; `labels` (n,), -1
        where they were not found.
    """
    rows = _statistic(scene, seen, name)
    if rows is None:
        return _of_inputs(seen, name, shape)
    known, design = rows
    deltas, inputs = factors(known, design, seen.clients, signed=seen.signed, seed=seed)
    if scene.quantity.root:
        inputs, deltas = inputs.sqrt(), deltas.clamp(min=0).sqrt()
    largest = inputs.amax(1, keepdim=True).clamp(min=1e-30)
    inputs, deltas = inputs / largest, deltas * largest.squeeze(1)
    labels = torch.full((seen.clients,), -1)
    if seen.clients == 1 and not scene.quantity.votes:
        size, label = _placed(scene, seen, name, shape, inputs[0], deltas[:, 0])
        inputs, labels = inputs * size, torch.tensor([label])
    return {"images": inputs.view(-1, *shape), "labels": labels}


def _statistic(scene: Scene, seen: Exposed, name: str) -> tuple[Tensor, Tensor] | None:
    """The released matrix of the layer and what its product of factors is multiplied by.

    None, if inputs themselves are released.
    """
    if name not in seen.values:
        return None
    w = scene.question.weights[name].double()
    kept = seen.masks[name].double() if name in seen.masks else torch.ones_like(w)
    if scene.host.config.defence and seen.clients == 1:
        # A zero beside other values of its input was kept back, and is not what it was.
        sent = seen.values[name] != 0
        kept = kept * (sent | ~sent.any(0)).double()
    if scene.quantity.votes:
        return seen.values[name], kept
    # What a gradient of 1 would be released as: 1, |w|, or minus one; 0 where nothing is.
    return seen.values[name], kept * scene.quantity.of(w, torch.ones_like(w))


def _of_inputs(seen: Exposed, name: str, shape: torch.Size) -> Part:
    """The root of Σ x² over the rows: with one row, that is the input."""
    sums = seen.values[inputs_of(name)].clamp(min=0)
    rows = seen.values[rows_of(name)].clamp(min=1.0)
    if seen.scaled:
        rows = sums.max().clamp(min=1e-30)
    return {
        "images": (sums / rows).sqrt().view(1, *shape).expand(seen.clients, *shape),
        "labels": torch.full((seen.clients,), -1),
    }


def factors(
    known: Tensor, design: Tensor, rank: int, *, signed: bool, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Left (rows, rank) and right (rank, columns) >= 0 with known ≈ design ∘ (left @ right).

    Multiplicative updates (Lee and Seung 2001), weighted by the design; left may be negative with
    `signed`, found by least squares of every row (semi-NMF, Ding et al. 2010,
    doi 10.1109/TPAMI.2008.277). With rank 1, alternating least squares, which converge at once.
    Found up to order and scale, and for several factors only a local optimum.
    """
    if rank == 1:
        return _rank_one(known, design, signed)
    gen = generator(seed, "factors")
    right = torch.rand(rank, known.shape[1], generator=gen, dtype=torch.float64) + 0.1
    left = torch.rand(known.shape[0], rank, generator=gen, dtype=torch.float64) + 0.1
    squares, cross = design.square(), design * known
    if not signed:
        known = known.clamp(min=0)
        cross = design.abs() * known
    for _ in range(_STEPS):
        if signed:
            left = _rows_fitted(squares, cross, right)
        else:
            left = left * _ratio(cross @ right.t(), (squares * (left @ right)) @ right.t())
        right = right * _moved(left, cross, squares * (left @ right), right, signed)
    return left, right


def _moved(left: Tensor, cross: Tensor, fitted: Tensor, right: Tensor, signed: bool) -> Tensor:
    if not signed:
        return _ratio(left.t() @ cross, left.t() @ fitted)
    # For a signed left the parts of either sign go to the side where they are positive.
    pull, push = left.t() @ cross, left.t() @ fitted
    gram = (left.t() @ left).clamp(max=0).neg() @ right
    return _ratio(pull.clamp(min=0) + gram, pull.clamp(max=0).neg() + push + gram).sqrt()


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    return over.clamp(min=0) / under.clamp(min=1e-12)


def _rows_fitted(squares: Tensor, cross: Tensor, right: Tensor) -> Tensor:
    """Least squares of every row on the right factors, with a trace of a ridge."""
    gram = torch.einsum("rc,kc,lc->rkl", squares, right, right)
    ridge = 1e-9 * gram.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-30)
    eye = torch.eye(right.shape[0], dtype=right.dtype)
    out: Tensor = torch.linalg.solve(gram + ridge * eye, cross @ right.t())
    return out


def _rank_one(known: Tensor, design: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    squares, cross = design.square(), design * known
    right = known.abs().sum(0).clamp(min=1e-30)
    left = torch.zeros(known.shape[0], dtype=known.dtype)
    for _ in range(50):
        left = (cross @ right) / (squares @ right.square()).clamp(min=1e-30)
        if not signed:
            left = left.clamp(min=0)
        right = (cross.t() @ left) / (squares.t() @ left.square()).clamp(min=1e-30)
        right = right.clamp(min=0)
        right = right / right.norm().clamp(min=1e-30)
    return left.unsqueeze(1), right.unsqueeze(0)


def _placed(
    scene: Scene, seen: Exposed, name: str, shape: torch.Size, flat: Tensor, deltas: Tensor
) -> tuple[float, int]:
    """How bright the input is and which label it has: what answers most like the message.

    δ of every brightness in a grid and every label, under the known model, against what was
    factored out; the grid is refined around the best.
    """
    answers = _deltas_of(scene, name, shape, flat)
    low, high, label = 0.02, 1.0, -1
    for _ in range(12):
        sizes = torch.linspace(low, high, 33, dtype=torch.float64)
        wrong = _misfits(answers(sizes), deltas, sizes, known=not seen.scaled)
        if label >= 0:
            wrong[:, [c for c in range(wrong.shape[1]) if c != label]] = torch.inf
        best = divmod(int(wrong.argmin()), wrong.shape[1])
        step, label = (high - low) / 32, best[1]
        middle = float(sizes[best[0]])
        low, high = max(1e-3, middle - step), min(1.0, middle + step)
    return middle, label


def _misfits(answers: Tensor, deltas: Tensor, sizes: Tensor, *, known: bool) -> Tensor:
    """(sizes, labels): how far |δ|·size is from what was found, the scale fitted if not known."""
    found = deltas.abs()
    would = answers.abs() * sizes.view(-1, 1, 1)
    if not known:
        dots = (would * found).sum(-1, keepdim=True)
        would = would * dots / would.square().sum(-1, keepdim=True).clamp(min=1e-60)
    return (would - found).square().sum(-1)


def _deltas_of(
    scene: Scene, name: str, shape: torch.Size, flat: Tensor
) -> Callable[[Tensor], Tensor]:
    """From brightnesses (s,) to δ (s, labels, rows) of the layer, in float64."""
    host, model = scene.host, scene.model().double().eval()
    (layer,) = layers_of(model, [name])[name]
    assert host.task.classes is not None  # a classifier
    classes = host.task.classes(host.config)
    labels = torch.arange(classes)

    def answers(sizes: Tensor) -> Tensor:
        images = (sizes.view(-1, 1) * flat).repeat_interleave(classes, 0).view(-1, *shape)
        batch = {"images": images, "labels": labels.repeat(len(sizes))}
        found = _gradient_before(model, layer, lambda m: host.task.loss(m, batch).total)
        return found.view(len(sizes), classes, -1)

    return answers


def _gradient_before(
    model: nn.Module, layer: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> Tensor:
    """The gradient of a loss that is summed over examples by what comes out of a layer."""
    outputs: list[Tensor] = []
    with layer.register_forward_hook(lambda _m, _x, y: outputs.append(y)):
        total = loss(model)
    return torch.autograd.grad(total, outputs[0])[0].detach()
