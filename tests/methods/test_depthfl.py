"""DepthFL against its loop in plain torch: three blocks on a residual stream, one head."""

import numpy as np
import torch

from tests.methods.test_regimes import KEYS
from tests.remembering import Stack, apart
from tests.runs import overheard, tiny

DEPTHS = (1.0, 0.5, 0.3)
BLOCKS = (3, 2, 1)


def test_a_client_trains_its_first_blocks_and_weights_are_means_over_their_holders():
    keys = {**KEYS, "task": "stack", "lr": 0.01, "sparsity": 0.0}
    config = tiny(**keys, method="depthfl", method_options={"depths": DEPTHS})
    result, asked, states = overheard(config)
    first = next(q for q, _, _ in asked if q.kind == "tune")
    data = [s.train for s in apart(config)]
    assert len({len(part["x"]) for part in data}) == 3, "of unequal size"
    whole = {n: w.double() for n, w in first.weights.items()}  # of those who train all
    for state in states:
        sums = {n: torch.zeros_like(w) for n, w in whole.items()}
        held = dict.fromkeys(whole, 0.0)
        for part, depth in zip(data, BLOCKS, strict=True):
            own = Stack().double()
            own.load_state_dict(whole)
            own.blocks = own.blocks[:depth]
            descent = torch.optim.SGD(own.parameters(), 0.01)
            for _ in range(2):
                descent.zero_grad()
                error = own(part["x"].double()) - part["y"].double()
                (error.square().sum() / len(error)).backward()
                descent.step()
            for n, w in own.state_dict().items():
                sums[n] += len(part["x"]) * w
                held[n] += len(part["x"])
        whole = {n: sums[n] / held[n] for n in whole}
        for n, w in whole.items():
            np.testing.assert_allclose(state.weights[n].numpy(), w.numpy(), atol=1e-6)
    assert result.summary["own_sparsity"] == (0 + 64 + 128) / 3 / 216
