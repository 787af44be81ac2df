"""HeteroFL against its average, by hand over what each client sends alone."""

from dataclasses import replace

import pytest
import torch

from fedprune.engines.inline import inline_port
from fedprune.tensors.named import count_kept, scattered
from tests.perceptron import mean_of_holders
from tests.runs import house_of, overheard, tiny

TIERS = (1.0, 0.5, 0.25)


@pytest.mark.slow
def test_each_weight_is_the_mean_over_the_clients_whose_part_has_it():
    config = tiny(
        **{"clients": 5, "cohort": 4, "rounds": 3, "warmup": 1, "end": 3, "model": "cnn"},
        **{"method": "heterofl", "method_options": {"tiers": TIERS}, "sparsity": 0.4},
    )
    result, asked, states = overheard(config)
    host = house_of(config)
    port = inline_port(host)
    for round_ in (1, 2, 3):
        tuned = [(q, ps) for q, ps, _ in asked if q.kind == "tune" and q.round == round_]
        assert sorted(p for _, ps in tuned for p in ps) == list(result.rows[round_ - 1]["cohort"])
        parts = []
        for question, partitions in tuned:
            assert len({p % len(TIERS) for p in partitions}) == 1, "a tier is asked together"
            for p in partitions:
                alone = port.ask(replace(question, known=frozenset()), [p])
                moved = scattered(alone.total / alone.weight, host.layout.shapes, question.masks)
                own = {n: w.double() + moved[n] for n, w in question.weights.items()}
                parts.append((alone.weight, own, question.masks))
        after = states[round_ - 1]
        means = mean_of_holders(parts, after.weights)
        for n, m in after.masks.items():
            assert torch.allclose(after.weights[n].double(), means[n] * m, atol=1e-7)
        whole = all(m.all() for q, _ in tuned for m in q.masks.values())
        assert whole == (round_ == 1), "at first everybody trains everything"
    masks = states[-1].memories["heterofl"].tiers
    for question, (p, *_) in tuned:
        assert all(torch.equal(question.masks[n], m) for n, m in masks[p % len(TIERS)].items())
    whole, kept = host.layout.whole, count_kept(states[-1].masks)
    for narrow, wide in zip(masks[1:], masks, strict=False):
        assert all(not (narrow[n] & ~m).any() for n, m in wide.items()), "parts are nested"
    for tier, density in zip(masks, TIERS, strict=True):
        assert abs(count_kept(tier) - density * kept) <= 1 + 0.001 * whole
    own = result.summary["quality"]["own"]
    assert own["count"] == result.summary["quality"]["final"]["count"]
    assert own["loss"] != result.summary["quality"]["final"]["loss"]


@pytest.mark.slow
def test_what_no_client_of_the_cohort_held_stays():
    keys = {"clients": 2, "cohort": 1, "rounds": 6, "warmup": 0, "end": 1, "model": "mlp"}
    options = {"tiers": (1.0, 0.5)}
    config = tiny(**keys, method="heterofl", sparsity=0.4, method_options=options)
    _, asked, states = overheard(config)
    narrow = [q for q, (p, *_), _ in asked if q.kind == "tune" and q.round > 1 and p % 2]
    assert narrow
    for question in narrow:
        before, after = states[question.round - 2], states[question.round - 1]
        for n, m in question.masks.items():
            outside = after.masks[n] & ~m
            assert outside.any()
            assert torch.equal(after.weights[n][outside], before.weights[n][outside])
            assert before.weights[n][outside].any()
