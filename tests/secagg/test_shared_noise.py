"""Noise that clients share out: as much as is booked, whoever of those who may drops out."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedprune import RunConfig
from fedprune.engines.inline_sums import inline_transport
from fedprune.privacy.discretise import noise_for
from fedprune.privacy.noise import seeded_source
from fedprune.privacy.release import Release
from fedprune.protocol.failures import Failure
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.models import layout_at
from fedprune.secagg.messages import Call, StageReply
from fedprune.secagg.secure_sum import secure_ask
from fedprune.secagg.shared_noise import fewest_left, noises_of, with_share
from fedprune.secagg.vectors import Piece
from fedprune.server.state import first_state
from tests.runs import house_of, played, tiny

HOUSEHOLD = {"clients": 10, "cohort": 10, "hosts": 4, "model": "mlp", "agreement": False}


def hidden(**changes: Any) -> RunConfig:
    return tiny(**{**HOUSEHOLD, "dp": "client", "dp_noise": 2.0, "secure": "secagg", **changes})


def changes_of(size: int, **rest: Any) -> Release:
    about = {"quantity": "changes", "clip": 1.0, "sensitivity": 2.0, "z": 3.0}
    return Release(fields=("values",), coordinates=size, **{**about, **rest})


@pytest.mark.parametrize("size", [1, 100, 10**6, 10**9])
def test_rounding_adds_less_than_a_hundredth_to_the_sensitivity(size):
    for clip in (1e-6, 0.7, 1.0, 300.0):
        noise = noise_for(changes_of(size, clip=clip, sensitivity=2 * clip))
        exact = 2 * clip / noise.step
        assert exact < noise.l2 < 1.01 * exact
        assert math.log2(noise.step).is_integer()
        assert noise.mu == pytest.approx((3 * noise.l2) ** 2)
        assert noise.l1 <= noise.l2**2
        assert noise.l1 <= math.sqrt(size) * noise.l2 * (1 + 1e-12)

    votes = noise_for(changes_of(size, clip=3.0, sensitivity=3.0, quantity="votes"))
    assert (votes.step, votes.l2) == (1.0, 3.0), "they are whole already"


def test_shares_add_up_to_the_noise_that_is_booked():
    """Of those who stay when as many drop out as may: the variance is mu, and no less."""
    noise, clients = noise_for(changes_of(1)), 10
    fewest = fewest_left(clients, hidden())
    assert fewest == 7
    piece = Piece("values", "a", 40000, scale=None)  # type: ignore[arg-type]
    total = np.zeros(40000, np.uint64)
    for client in range(fewest):
        with_share(total, (piece,), {"values": noise}, fewest, seeded_source(1, "test", client))
    found = total.view(np.int64).astype(float)
    assert np.std(found) == pytest.approx(math.sqrt(noise.mu), rel=0.02)
    assert abs(np.mean(found)) < 0.03 * math.sqrt(noise.mu)


def asked(host, kind="tune", transport=None):
    state = first_state(host.model, host.layout)
    question = Question(kind, 3, state.weights, state.masks, score="taylor", lr=0.1)
    reached = transport or inline_transport(host)
    return secure_ask(question, range(10), host.layout, host.config, reached), question


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tune", "score"])
def test_the_noise_on_a_secure_sum_is_what_is_booked(kind):
    """The sum with almost no noise is taken away: what is left has the deviation in the ledger."""
    noisy, question = asked(house_of(hidden()), kind)
    quiet, _ = asked(house_of(hidden(dp_noise=1e-4, dp_score_noise=1e-4)), kind)
    config = hidden()
    layout = layout_at(config, ())
    noise = noises_of(question, form_of(question, config, layout), config, layout)["values"]
    left = noisy.total - quiet.total
    # Ten shares of noise for seven: nobody dropped out.
    booked = math.sqrt(noise.mu * 10 / 7) * noise.step
    assert float(left.std()) == pytest.approx(booked, rel=0.03)
    assert noisy.weight == 10.0
    assert noisy.totals == {}
    assert noisy.votes is None


@pytest.mark.slow
def test_a_run_books_what_its_clients_add():
    few = {"rounds": 2, "warmup": 0, "end": 1, "metrics": "noised"}
    ours, central = (played(hidden(**few, secure=s)).summary for s in ("secagg", "none"))
    assert (ours["rounds_completed"], ours["failures"]) == (2, 0)
    # All are asked, so that no draw protects; the bound for Skellam noise is of whole orders only.
    plain = central["privacy"]["epsilon"]
    assert plain < ours["privacy"]["epsilon"] < 1.1 * plain


def test_with_fewer_left_than_the_noise_was_made_for_nothing_is_opened():
    host, lost = house_of(hidden(secure_dropout=0.1)), {2, 5}
    reached = inline_transport(host)

    def unreliable(call: Call, partitions: Sequence[int], enclosed: Any) -> StageReply:
        away = lost if call.stage == "masked" else set()
        reply = reached(call, [p for p in partitions if p not in away], enclosed)
        missing = tuple(Failure(p, "masked", "", "left") for p in partitions if p in away)
        return replace(reply, failures=reply.failures + missing)

    found, _ = asked(host, transport=unreliable)
    assert found.tries == 2
    assert set(found.answered) == set(range(10)) - lost
    assert found.weight == 8.0


def test_narrow_integers_have_room_for_small_noise_alone():
    with pytest.raises(ValueError, match="secure-bits=32: no room for the noise of 10 clients"):
        asked(house_of(hidden(secure_bits=32, dp_noise=5000.0)))
    found, wide = (asked(house_of(hidden(secure_bits=bits)))[0] for bits in (32, 64))
    assert float(found.total.std()) == pytest.approx(float(wide.total.std()), rel=0.05)
