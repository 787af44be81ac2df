"""The order of a text's tokens, by search for the text whose release would look like the message.

Gradient matching on text (TAG, Deng et al. 2021, arXiv 2103.06819; LAMP, Balunovic et al. 2022,
arXiv 2202.08827), by the cosine of LAMP and with probabilities of tokens instead of free
embeddings: inputs and labels are the same text, shifted, so that one table of probabilities gives
both. Tokens that other evidence has ruled out are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedprune.attacks.exposed import Exposed
from fedprune.attacks.matching import likeness
from fedprune.attacks.scene import Scene
from fedprune.randomness import generator
from fedprune.structure.layers import parameters_of


def spelled(
    scene: Scene,
    seen: Exposed,
    table: str,
    candidates: list[int],
    length: int,
    steps: int = 200,
    seed: int = 0,
) -> list[int]:
    """The ids of a text of `length` tokens and the one that follows, length + 1 in all.

    `table`: name of the embeddings. `candidates`: the ids that may occur.
    """
    scene.quantity.check_matchable()
    model = scene.model().eval()
    names = [n for n, _ in model.named_parameters() if n in seen.values]
    target = torch.cat([seen.values[n].flatten() for n in names]).float()
    ids = torch.tensor(candidates)
    gen = generator(seed, "spelling")
    start = torch.randn(length + 1, len(ids), generator=gen).requires_grad_()
    optimizer = torch.optim.Adam([start], lr=0.2)
    # Only the plain kernel can be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(steps):
            optimizer.zero_grad()
            would = _released(scene, model, names, table, start.softmax(1), ids)
            miss = 1 - likeness(would, target, centred=scene.quantity.votes)
            (start.grad,) = torch.autograd.grad(miss, [start])
            optimizer.step()
    return [int(i) for i in ids[start.detach().argmax(1)]]


def _released(
    scene: Scene, model: nn.Module, names: list[str], table: str, shares: Tensor, ids: Tensor
) -> Tensor:
    """What a client with this text would release, flat, up to a factor."""
    parameters = parameters_of(model, names)
    embeddings = model.get_parameter(table)
    inputs = shares[:-1] @ embeddings[ids]
    logits = model(inputs_embeds=inputs.unsqueeze(0)).logits[0]
    loss = -(shares[1:] * nn.functional.log_softmax(logits, -1)[:, ids]).sum()
    found = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, materialize_grads=True
    )
    pairs = zip(parameters.values(), found, strict=True)
    return torch.cat([scene.quantity.of(p.detach(), g).flatten() for p, g in pairs])


def in_place(found: list[int], truth: list[int]) -> float:
    """Part of the tokens that stand where they stood."""
    return sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth)
