"""FedRTS against its rule, stated again in numpy over what the clients answered."""

import math

import numpy as np
import pytest
import torch

from fedprune.methods.fedrts import Memory
from fedprune.randomness import derive
from fedprune.tensors.named import Masks
from tests.runs import overheard, same, tiny

SPARSITY, EXCHANGE, GAMMA, LAMBDA = 0.7, 0.4, 0.3, 10.0


def flat(masks: Masks, names: list[str]) -> np.ndarray:
    return np.concatenate([masks[n].numpy().ravel() for n in names])


@pytest.mark.slow
def test_the_mask_is_drawn_from_posteriors_that_every_outcome_moves():
    config = tiny(
        **{"clients": 3, "cohort": 3, "rounds": 6, "warmup": 1, "end": 6, "model": "mlp"},
        **{
            "frequency": 2,
            "method": "fedrts",
            "schedule": "regrow",
            "method_options": {"gamma": GAMMA},
        },
    )
    _, asked, states = overheard(config)
    names = list(states[0].masks)  # in the order in which posteriors are drawn
    sizes = [states[0].masks[n].numel() for n in names]
    n = sum(sizes)
    kept = n - math.floor(SPARSITY * n + 0.5)
    alpha, beta = np.ones(n, np.float32), np.ones(n, np.float32)
    for step, round_ in enumerate((2, 4, 6)):
        alive = flat(states[round_ - 2].masks, names)
        (_, _, scored), (_, _, grown) = [
            each for each in asked if each[0].kind == "score" and each[0].round == round_
        ]
        assert scored.total is not None
        assert scored.votes is not None
        assert grown.total is not None
        assert set(scored.votes.unique().tolist()) <= {0, 1, 2, 3}, "a client counts once"
        doubt = EXCHANGE / 2 * (1 + math.cos(math.pi * step / 3))
        safe = SPARSITY + doubt * (1 - SPARSITY)
        # Flat buffers are in the order of names.
        order = np.argsort(
            np.concatenate(
                [np.full(s, sorted(names).index(m)) for m, s in zip(names, sizes, strict=True)]
            ),
            kind="stable",
        )
        back = np.argsort(order)
        score = np.full(n, -1.0)
        score[order[alive[order]]] = np.abs(scored.total.numpy())
        share = np.zeros(n, np.float32)
        share[order[alive[order]]] = scored.votes.numpy().astype(np.float32) / 3
        top = np.zeros(n, bool)
        top[np.argsort(-score, kind="stable")[: n - math.floor(safe * n + 0.5)]] = True
        gradient = np.where(alive, -1.0, np.abs(grown.total.numpy())[back])
        grows = min(round(doubt * (1 - SPARSITY) * n), int((~alive).sum()))
        wanted = np.zeros(n, bool)
        wanted[np.argsort(-gradient, kind="stable")[:grows]] = True
        x = np.where(
            alive, GAMMA * top + (1 - GAMMA) * share, GAMMA / 2 + (1 - GAMMA) * wanted
        ).astype(np.float32)
        alpha, beta = alpha + LAMBDA * x, beta + LAMBDA * (1 - x)
        memory = states[round_ - 1].memories["fedrts"]
        assert isinstance(memory, Memory)
        assert np.allclose(flat(memory.alpha, names), alpha, rtol=1e-5)
        assert np.allclose(flat(memory.beta, names), beta, rtol=1e-5)
        gen = np.random.default_rng(derive(config.seed, "thompson", round_))
        drawn = np.concatenate(
            [gen.beta(memory.alpha[m].numpy(), memory.beta[m].numpy()).ravel() for m in names]
        )
        mask = np.zeros(n, bool)
        mask[np.argsort(-drawn, kind="stable")[:kept]] = True
        assert (flat(states[round_ - 1].masks, names) == mask).all()
        fresh = mask & ~alive
        assert fresh.any() or round_ == 2
        assert all(not state.weights[m][~state.masks[m]].any() for state in states for m in names)
    for state, after in zip(states[1::2], states[2::2], strict=False):
        assert same(state.memories["fedrts"].alpha, after.memories["fedrts"].alpha)
    assert torch.equal(states[0].masks[names[0]], torch.ones_like(states[0].masks[names[0]]))
