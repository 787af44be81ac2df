"""FedMap against its rule in NumPy: the largest of the averaged weights that are left."""

import numpy as np

from tests.methods.test_regimes import KEYS, plainly, top
from tests.remembering import apart
from tests.runs import overheard, tiny


def test_the_smallest_of_what_is_left_go_and_training_goes_on():
    config = tiny(**{**KEYS, "rounds": 3, "end": 2, "method": "fedmap", "sparsity": 0.75})
    _, asked, states = overheard(config)
    data = [{k: v.double().numpy() for k, v in s.train.items()} for s in apart(config)]
    sizes = np.array([len(d["x"]) for d in data])
    questions = [q for q, _, _ in asked if q.kind == "tune"]
    w = None
    for question, state, kept in zip(questions, states, (12, 6, 6), strict=True):
        sent, mask = question.weights["weight"].double().numpy(), question.masks["weight"].numpy()
        if w is not None:
            np.testing.assert_allclose(sent, w * top(w, kept), atol=1e-5)
        assert mask.sum() == kept
        own = []
        for d in data:
            start = sent
            for _ in range(2):
                start = start + mask * (plainly(start, d["x"], d["y"], 1) - start)
            own.append(start)
        w = sum(n * o for n, o in zip(sizes, own, strict=True)) / sizes.sum()
        np.testing.assert_allclose(state.weights["weight"].numpy(), w, atol=1e-5)
