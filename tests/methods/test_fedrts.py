"""FedRTS against its rule, stated again in numpy over what the clients answered."""

import math

import numpy as np
import pytest
import torch

from fedprune.randomness import derive
from fedprune.tensors.named import Masks, Tensors, scattered
from tests.runs import overheard, same, tiny

SPARSITY, EXCHANGE, GAMMA, LAMBDA = 0.7, 0.4, 0.3, 10.0


def flat(tensors: Tensors, names: list[str]) -> np.ndarray:
    return np.concatenate([tensors[n].numpy().ravel() for n in names])


def best(values: np.ndarray, many: int) -> np.ndarray:
    """Flags of the largest values."""
    flags = np.zeros(len(values), bool)
    flags[np.argsort(-values, kind="stable")[:many]] = True
    return flags


@pytest.mark.slow
def test_the_mask_is_drawn_from_posteriors_that_every_outcome_moves():
    keys = {"clients": 3, "cohort": 3, "rounds": 6, "warmup": 1, "end": 6, "model": "mlp"}
    how = {"frequency": 2, "method": "fedrts", "schedule": "regrow"}
    config = tiny(**keys, **how, method_options={"gamma": GAMMA})
    _, asked, states = overheard(config)
    names = list(states[0].masks)  # in the order in which posteriors are drawn
    shapes = {n: m.shape for n, m in states[0].masks.items()}
    n = sum(shape.numel() for shape in shapes.values())
    kept = n - math.floor(SPARSITY * n + 0.5)
    alpha, beta = np.ones(n, np.float32), np.ones(n, np.float32)
    for step, round_ in enumerate((2, 4, 6)):
        before, state = states[round_ - 2], states[round_ - 1]

        def by_name(values: torch.Tensor, masks: Masks) -> np.ndarray:
            return flat(scattered(values.double(), shapes, masks), names)

        alive = flat(before.masks, names)
        (_, _, scored), (_, _, grown) = [
            each for each in asked if each[0].kind == "score" and each[0].round == round_
        ]
        assert set(scored.votes.unique().tolist()) <= {0, 1, 2, 3}, "a client counts once"
        doubt = EXCHANGE / 2 * (1 + math.cos(math.pi * step / 3))
        safe = SPARSITY + doubt * (1 - SPARSITY)
        score = np.where(alive, np.abs(by_name(scored.total, before.masks)), -1.0)
        share = by_name(scored.votes, before.masks).astype(np.float32) / 3
        top = best(score, n - math.floor(safe * n + 0.5))
        gradient = np.where(alive, -1.0, np.abs(by_name(grown.total, {})))
        wanted = best(gradient, min(round(doubt * (1 - SPARSITY) * n), int((~alive).sum())))
        x = np.where(
            alive, GAMMA * top + (1 - GAMMA) * share, GAMMA / 2 + (1 - GAMMA) * wanted
        ).astype(np.float32)
        alpha, beta = alpha + LAMBDA * x, beta + LAMBDA * (1 - x)
        memory = state.memories["fedrts"]
        assert np.allclose(flat(memory.alpha, names), alpha, rtol=1e-5)
        assert np.allclose(flat(memory.beta, names), beta, rtol=1e-5)
        gen = np.random.default_rng(derive(config.seed, "thompson", round_))
        drawn = np.concatenate(
            [gen.beta(memory.alpha[m].numpy(), memory.beta[m].numpy()).ravel() for m in names]
        )
        mask = best(drawn, kept)
        assert (flat(state.masks, names) == mask).all()
        assert (mask & ~alive).any() or round_ == 2
    assert all(not s.weights[m][~s.masks[m]].any() for s in states for m in names)
    for state, after in zip(states[1::2], states[2::2], strict=False):
        assert same(state.memories["fedrts"].alpha, after.memories["fedrts"].alpha)
    assert states[0].masks[names[0]].all()
