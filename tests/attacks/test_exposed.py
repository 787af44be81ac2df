"""An observer has what the software sends, and what was done to it."""

import math

import pytest
import torch

from fedprune.attacks.exposed import (
    MessageProtection,
    exposed,
    multiplier_for,
    noise_like,
    protections,
)
from fedprune.attacks.quantities import QUANTITIES
from fedprune.attacks.scene import message, scene
from fedprune.engines.inline import inline_port
from fedprune.tasks.task import Part
from fedprune.tensors.models import load_into
from fedprune.tensors.named import gathered

KEYS = {"task": "digits", "model": "mlp", "seed": 3}


def parts(n: int = 3, size: int = 1) -> list[Part]:
    gen = torch.Generator().manual_seed(0)
    return [
        {
            "images": torch.rand(size, 1, 8, 8, generator=gen),
            "labels": torch.randint(10, (size,), generator=gen),
        }
        for _ in range(n)
    ]


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_sum_of_messages_is_what_the_server_gets(name):
    made = scene(name, parts(), KEYS)
    messages = [message(made, p) for p in range(3)]
    aggregate = inline_port(made.host).ask(made.question, [0, 1, 2])
    assert not aggregate.failures
    got = aggregate.votes if made.quantity.votes else aggregate.total
    assert got is not None
    seen = exposed(made, messages, MessageProtection("", clients=3))
    torch.testing.assert_close(gathered(seen.values, made.masks), got.double())


@pytest.mark.parametrize("name", [n for n, q in QUANTITIES.items() if q.each is not None])
def test_a_quantity_is_what_its_function_of_the_gradient_says(name):
    """Up to a factor; votes keep what is largest."""
    made = scene(name, parts(1), KEYS)
    (seen,) = [exposed(made, [message(made, 0)], MessageProtection(""))]
    model, task = made.host.model, made.host.task
    load_into(model, made.question.weights)
    loss = task.loss(model.eval(), made.host.shards[0].train).total
    w = model.get_parameter("features.1.weight")
    (g,) = torch.autograd.grad(loss, w)
    each = made.quantity.each
    assert each is not None
    want = each(w.detach(), g).flatten().double()
    have = seen.values["features.1.weight"].flatten()
    if made.quantity.votes:
        assert want[have > 0].min() >= want[have == 0].max()
        return
    assert torch.nn.functional.cosine_similarity(want, have, 0) > 1 - 1e-9


def test_nothing_is_seen_of_what_a_mask_removed():
    whole = scene("|g|", parts(), KEYS)
    masks = {n: m.clone() for n, m in whole.question.masks.items()}
    masks["features.1.weight"][::2] = False
    made = scene("|g|", parts(), KEYS, masks=masks)
    seen = exposed(made, [message(made, 0)], MessageProtection("", noise=1.0)).values
    assert bool((seen["features.1.weight"][::2] == 0).all())
    assert bool((seen["features.1.weight"][1::2] != 0).any())


def test_clipped_messages_have_norm_one_and_noise_its_deviation():
    made = scene("|g|", parts(), KEYS)
    messages = [message(made, p) for p in range(3)]
    one = exposed(made, messages, MessageProtection("", clip=True))
    assert float(gathered(one.values, {}).norm()) == pytest.approx(1.0)
    loud = exposed(made, messages, MessageProtection("", clip=True, noise=2.0))
    noise = gathered(loud.values, {}) - gathered(one.values, {})
    assert float(noise.std()) == pytest.approx(2.0 * math.sqrt(2.0), rel=0.03)


def test_noise_is_what_dp_accounting_asks_for():
    """The golden values of one Gaussian: z = 1 has epsilon 4.3772 at 1e-5."""
    assert multiplier_for(4.3772) == pytest.approx(1.0, abs=1e-3)
    names = protections([1.0, 10.0], 5)
    assert [p.noise > 0 for p in names.values()] == [False, False, False, True, True, True]


def test_a_random_message_has_nothing_of_the_client():
    made = scene("votes", parts(), KEYS)
    like = message(made, 0)
    drawn = gathered(noise_like(made, like, 0, clients=2).values, {})
    assert drawn.sum() == like.sum()
    assert abs(float(torch.corrcoef(torch.stack([drawn, like]))[0, 1])) < 0.05


def test_more_clients_than_messages_are_refused():
    made = scene("g", parts(), KEYS)
    with pytest.raises(ValueError, match="clients=3: more than 1 messages"):
        exposed(made, [message(made, 0)], MessageProtection("", clients=3))
