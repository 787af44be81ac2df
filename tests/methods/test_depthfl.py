"""DepthFL against its loop in plain torch: three blocks on a residual stream, one head."""

import numpy as np

from tests.methods.test_regimes import KEYS
from tests.remembering import apart, round_of_blocks
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
        whole = round_of_blocks(whole, data, [range(many) for many in BLOCKS])
        for n, w in whole.items():
            np.testing.assert_allclose(state.weights[n].numpy(), w.numpy(), atol=1e-6)
    assert result.summary["own_sparsity"] == (0 + 64 + 128) / 3 / 216
    assert result.summary["clients_have"] == "parts"
