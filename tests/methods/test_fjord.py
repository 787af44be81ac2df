"""FjORD against its loop in NumPy: rows are the units of a linear model."""

import numpy as np
import torch

from fedprune.learning.manners import part_of_step
from fedprune.randomness import generator
from fedprune.tensors.named import copied
from tests.methods.test_regimes import KEYS, slope
from tests.remembering import apart
from tests.runs import overheard, tiny


def test_a_width_is_drawn_for_every_step_and_weights_are_means_over_their_holders():
    config = tiny(
        **{**KEYS, "sparsity": 1 / 3, "schedule": "one-shot", "local_steps": 4, "unit": "row"},
        **{"method": "fjord", "method_options": {"widths": (1.0, 0.5)}},
    )
    _, asked, states = overheard(config)
    data = [{k: v.double().numpy() for k, v in s.train.items()} for s in apart(config)]
    w = next(q for q, _, _ in asked if q.kind == "tune").weights["weight"].double().numpy()
    w = w * (np.arange(3) < 2)[:, None]
    for state in states:
        sums, held = np.zeros((3, 8)), np.zeros((3, 1))
        for k, d in enumerate(data):
            rows, own = [2, 1][k % 2], w.copy()
            gen = generator(config.seed, "widths", state.round, k)
            for _ in range(4):
                drawn = [rows, 1][int(torch.randint(3 - k % 2 - 1, (1,), generator=gen))]
                part = (np.arange(3) < drawn)[:, None]
                own = own - 0.05 * part * slope(own * part, d["x"], d["y"])
            holds = (np.arange(3) < rows)[:, None]
            sums, held = sums + len(d["x"]) * holds * own, held + len(d["x"]) * holds
        w = np.where(held > 0, sums / np.maximum(held, 1), 0.0)
        np.testing.assert_allclose(state.weights["weight"].numpy(), w, atol=1e-5)
        assert state.masks["weight"].any(1).tolist() == [True, True, False]


def test_a_step_computes_with_its_part_alone():
    gen = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).double()
    x = torch.randn(5, 4, generator=gen, dtype=torch.float64)
    part = {f"{i}.weight": torch.arange(n) < n - 1 for i, n in ((0, 3), (1, 2))}
    part = {n: m[:, None].expand_as(net.get_parameter(n)) for n, m in part.items()}
    before = copied(net.state_dict())
    with part_of_step({n: net.get_parameter(n) for n in part}, [part], gen).gradients():
        net(x).square().sum().backward()
    leaves = {n: (w * part.get(n, 1)).requires_grad_() for n, w in before.items()}
    torch.func.functional_call(net, leaves, x).square().sum().backward()
    for n, p in net.named_parameters():
        torch.testing.assert_close(p.grad, leaves[n].grad * part.get(n, 1))
        assert torch.equal(p, before[n])
