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
from fedprune.attacks.scene import Scene, message, scene
from fedprune.engines.inline import inline_port
from fedprune.tensors.models import load_into
from fedprune.tensors.named import Masks, gathered
from tests.attacks.scenes import FIRST, images, seen_of


def made(name: str, masks: Masks | None = None) -> Scene:
    return scene(name, images(3), {"task": "digits", "model": "mlp", "seed": 3}, masks=masks)


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_sum_of_messages_is_what_the_server_gets(name):
    s = made(name)
    aggregate = inline_port(s.host).ask(s.question, [0, 1, 2])
    assert not aggregate.failures
    got = aggregate.votes if s.quantity.votes else aggregate.total
    torch.testing.assert_close(gathered(seen_of(s, 0, 1, 2).values, s.masks), got.double())


@pytest.mark.parametrize("name", [n for n, q in QUANTITIES.items() if q.each is not None])
def test_a_quantity_is_what_its_function_of_the_gradient_says(name):
    """Up to a factor; votes keep what is largest."""
    s = made(name)
    have = seen_of(s).values[FIRST].flatten()
    model, task = s.host.model, s.host.task
    load_into(model, s.question.weights)
    w = model.get_parameter(FIRST)
    (g,) = torch.autograd.grad(task.loss(model.eval(), s.host.shards[0].train).total, w)
    want = s.quantity.each(w.detach(), g).flatten().double()
    if s.quantity.votes:
        assert want[have > 0].min() >= want[have == 0].max()
    else:
        assert torch.nn.functional.cosine_similarity(want, have, 0) > 1 - 1e-9


def test_nothing_is_seen_of_what_a_mask_removed():
    masks = {n: m.clone() for n, m in made("|g|").question.masks.items()}
    masks[FIRST][::2] = False
    seen = seen_of(made("|g|", masks), noise=1.0).values[FIRST]
    assert bool((seen[::2] == 0).all())
    assert bool((seen[1::2] != 0).any())


def test_clipped_messages_have_norm_one_and_noise_its_deviation():
    s = made("|g|")
    one, loud = (gathered(seen_of(s, clip=True, noise=z).values, {}) for z in (0.0, 2.0))
    assert float(one.norm()) == pytest.approx(1.0)
    assert float((loud - one).std()) == pytest.approx(2.0 * math.sqrt(2.0), rel=0.03)


def test_noise_is_what_dp_accounting_asks_for():
    """The golden values of one Gaussian: z = 1 has epsilon 4.3772 at 1e-5."""
    assert multiplier_for(4.3772) == pytest.approx(1.0, abs=1e-3)
    names = protections([1.0, 10.0], 5)
    assert [p.noise > 0 for p in names.values()] == [False, False, False, True, True, True]


def test_a_random_message_has_nothing_of_the_client():
    s = made("votes")
    like = message(s, 0)
    drawn = gathered(noise_like(s, like, 0, clients=2).values, {})
    assert drawn.sum() == like.sum()
    assert abs(float(torch.corrcoef(torch.stack([drawn, like]))[0, 1])) < 0.05


def test_more_clients_than_messages_are_refused():
    s = made("g")
    with pytest.raises(ValueError, match="clients=3: more than 1 messages"):
        exposed(s, [message(s, 0)], MessageProtection("", clients=3))
