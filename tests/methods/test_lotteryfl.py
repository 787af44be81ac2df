"""LotteryFL against its algorithm 1, written out as a loop over clients."""

import pytest
import torch

from fedprune import federate
from fedprune.client.host import Host
from fedprune.config.rates import learning_rate
from fedprune.engines.inline import inline_port
from fedprune.protocol.messages import Question
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, Tensors, copied, count_kept, masked, scattered
from tests.perceptron import mean_of_holders
from tests.runs import house_of, same, tiny

THRESHOLD, RATE, TARGET = 0.12, 0.3, 0.6


def accuracy(host: Host, weights: Tensors, partition: int) -> float:
    load_into(host.model, weights)
    host.model.eval()
    with torch.no_grad():
        loss = host.task.loss(host.model, host.shards[partition].validation)
    return loss.correct / loss.count


def without_smallest(weights: Tensors, masks: Masks) -> Masks | None:
    total, kept = sum(m.numel() for m in masks.values()), count_kept(masks)
    if total - kept >= TARGET * total:
        return None
    share = min(TARGET, 1 - kept / total + RATE * kept / total)
    sizes = torch.cat([weights[n].abs().masked_fill(~m, -1.0).flatten() for n, m in masks.items()])
    gone = torch.zeros(total, dtype=torch.bool)
    gone[sizes.sort(stable=True).indices[: int(share * total + 0.5)]] = True
    parts = gone.split([m.numel() for m in masks.values()])
    return {n: ~p.reshape(m.shape) for (n, m), p in zip(masks.items(), parts, strict=True)}


@pytest.mark.slow
def test_a_run_is_the_loop_of_the_paper():
    config = tiny(
        **{"clients": 3, "cohort": 3, "rounds": 5, "warmup": 1, "end": 4, "model": "mlp"},
        **{"method": "lotteryfl", "sparsity": TARGET, "lr": 0.3, "local_steps": 4},
        method_options={"threshold": THRESHOLD, "rate": RATE},
    )
    host = house_of(config)
    result = federate(config, inline_port(host))
    port = inline_port(host)
    start = copied(state_of(house_of(config).model))
    weights = start
    masks = {
        p: {n: torch.ones_like(start[n], dtype=torch.bool) for n in host.layout.prunable}
        for p in range(3)
    }
    pruned_ever = set()
    for round_ in range(1, 6):
        parts = []
        for p in range(3):
            sent = masked(weights, masks[p])
            if 2 <= round_ <= 4 and accuracy(host, sent, p) >= THRESHOLD:
                fresh = without_smallest(sent, masks[p])
                if fresh is not None:
                    masks[p], sent = fresh, masked(start, fresh)
                    pruned_ever.add(p)
            lr = learning_rate(config, round_)
            answer = port.ask(Question("tune", round_, sent, masks[p], lr=lr), [p])
            moved = scattered(answer.total / answer.weight, host.layout.shapes, masks[p])
            own = {n: w.double() + moved[n] for n, w in sent.items()}
            parts.append((answer.weight, own, masks[p]))
        weights = {n: w.float() for n, w in mean_of_holders(parts, weights).items()}
    assert pruned_ever, "some client's model was good enough"
    memory = result.state.memories["lotteryfl"]
    assert memory.masks.keys() == pruned_ever
    assert all(same(memory.masks[p], masks[p]) for p in pruned_ever)
    for n, w in weights.items():
        assert torch.allclose(result.state.weights[n], w, atol=1e-6), n
    kept = sum(count_kept(masks[p]) for p in range(3)) / 3
    assert abs(result.summary["own_sparsity"] - (1 - kept / host.layout.whole)) < 1e-9
    assert result.summary["clients_have"] == "masks"


def test_whom_nobody_asked_yet_holds_the_whole_model():
    config = tiny(
        **{"clients": 5, "cohort": 2, "rounds": 1, "warmup": 0, "end": 1, "model": "mlp"},
        **{"method": "lotteryfl", "method_options": {"threshold": 0.0, "rate": 0.5}},
    )
    result = federate(config, inline_port(house_of(config)))
    assert result.summary["own_sparsity"] == pytest.approx(2 / 5 * 0.5)
