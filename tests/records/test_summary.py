"""What a run came to, in numbers that other libraries can check."""

import numpy as np
import pytest

from tests.runs import played, tiny


def test_effective_ranks_are_numpys_and_what_is_left_adds_up():
    result = played(tiny())
    layers = result.summary["layers"]
    assert len(layers) == len(result.state.masks)
    for layer in layers:
        weight = result.state.weights[layer["name"]].numpy()
        values = np.linalg.svd(weight.reshape(len(weight), -1).astype(float), compute_uv=False)
        shares = values[values > 0] / values.sum()
        assert layer["most"] == len(values)
        assert layer["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    told = result.summary
    assert sum(layer["kept"] for layer in told["layers"]) == told["kept_parameters"]
    assert sum(layer["total"] for layer in told["layers"]) == told["prunable_parameters"]
    gone = told["prunable_parameters"] - told["kept_parameters"]
    assert told["sparsity_of_all"] == pytest.approx(gone / told["parameters"])
