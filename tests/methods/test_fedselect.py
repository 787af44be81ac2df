"""FedSelect against its loop in NumPy, over clients of unequal size."""

import numpy as np

from tests.methods.test_regimes import KEYS, slope
from tests.remembering import apart
from tests.runs import overheard, tiny


def test_what_moves_most_becomes_a_clients_own_and_the_rest_is_averaged():
    keys = {**KEYS, "rounds": 7, "local_steps": 3, "sparsity": 0.0, "warmup": None, "end": None}
    keys["momentum"] = 0.5
    options = {"grows": 0.25, "limit": 0.5, "every": 2}
    config = tiny(**keys, method="fedselect", method_options=options)
    result, asked, states = overheard(config)
    data = [{k: v.double().numpy() for k, v in s.train.items()} for s in apart(config)]
    shared = next(q for q, _, _ in asked if q.kind == "tune").weights["weight"].double().numpy()
    own = [np.zeros_like(shared) for _ in data]
    mine = [np.zeros(shared.shape, bool) for _ in data]
    held = [m.copy() for m in mine]
    for state in states:
        sums, common = np.zeros_like(shared), np.zeros_like(shared)
        for k, d in enumerate(data):
            w = begun = np.where(held[k], own[k], shared)
            speed = np.zeros_like(w)
            for step in range(3):
                moves = mine[k] if step % 2 == 0 else ~mine[k]
                moves = moves if mine[k].any() else np.ones_like(moves)
                speed = 0.5 * speed + moves * slope(w, d["x"], d["y"])
                w = w - 0.05 * moves * speed
            sums, common = sums + w * ~mine[k], common + ~mine[k]
            own[k], held[k] = w, mine[k]
            room = int(0.5 * w.size) - mine[k].sum()
            few = max(0, min(round(0.25 * (~mine[k]).sum()), room))
            few = 0 if state.round % 2 else few
            moved = np.where(mine[k], -1.0, np.abs(w - begun)).ravel()
            grown = mine[k].copy().ravel()
            grown[np.argsort(-moved, kind="stable")[:few]] = True
            mine[k] = grown.reshape(w.shape)
        shared = np.where(common > 0, sums / np.maximum(common, 1), shared)
        np.testing.assert_allclose(state.weights["weight"].numpy(), shared, atol=1e-6)
    assert len({m.tobytes() for m in mine}) == 3
    assert all(m.sum() == int(0.5 * m.size) for m in mine)
    loss = count = 0.0
    for k, shard in enumerate(apart(config)):
        x, y = (shard.test[n].double().numpy() for n in "xy")
        loss += np.square(x @ np.where(held[k], own[k], shared).T - y).sum()
        count += len(x)
    measured = result.summary["quality"]["own"]
    np.testing.assert_allclose(measured["loss"], loss / count, rtol=1e-5)
