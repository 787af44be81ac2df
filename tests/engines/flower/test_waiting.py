"""How long devices are waited for: one deadline a question, and who missed it holds nobody up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message

from fedprune import RunConfig
from fedprune.engines.flower import exchange
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.strategy import FedPrune
from fedprune.engines.flower.waiting import BANDWIDTH, NOT_AWAITED, SHORTEST, UNKNOWN_YET, Waiting
from fedprune.options.refusal import ConfigError
from fedprune.server.watch import Watch
from tests.runs import tiny

FOUR = frozenset({1, 2, 3, 4})


@pytest.mark.parametrize(
    ("auto", "size", "known", "took", "limit"),
    [
        (False, 0, [], [1.0, 2.0], 3600.0),
        (True, 0, [], [], UNKNOWN_YET),
        (True, 10**7, [], [], UNKNOWN_YET + 2e7 / BANDWIDTH),
        (True, 0, [], [50.0], UNKNOWN_YET),  # one of four says nothing of the others yet
        (True, 0, [40.0, 60.0, 500.0], [], 180.0),
        (True, 0, [40.0, 60.0, 500.0], [100.0, 110.0], 315.0),
        (True, 0, [2.0, 3.0], [], SHORTEST),
        (True, 10**12, [], [], 3600.0),
        (True, 0, [1e5], [], 3600.0),
    ],
)
def test_three_times_the_median_of_what_others_took(
    auto: bool, size: int, known: list[float], took: list[float], limit: float
):
    waiting = Waiting(7.0, 3600.0, auto, size, known, FOUR, took=took)
    assert waiting.limit() == limit
    assert waiting.over(7.0 + limit - 1e-3, FOUR) == ""
    assert waiting.over(7.0 + limit, FOUR) == f"no reply within {limit:.4g} s"


def test_nobody_waits_for_who_was_late_alone():
    waiting = Waiting(0.0, 100.0, asked=FOUR, late=frozenset({2, 3}))
    assert waiting.over(1.0, {1, 2}) == ""
    assert waiting.over(1.0, {2, 3}) == NOT_AWAITED
    assert Waiting(0.0, 100.0, asked=frozenset({2}), late=frozenset({2})).over(1.0, {2}) == ""


def stuck(node: int, question: Message, reply: Message) -> Message | None:
    return None if (node, question.metadata.message_type) == (78, "train.tune") else reply


@pytest.mark.sampled(1)
@pytest.mark.parametrize("deadline", [None, 20.0, "auto"])
def test_a_stuck_device_costs_one_deadline_once(devices: Any, deadline: Any):
    config: RunConfig = tiny(
        engine="flower", rounds=4, clients=2, cohort=2, min_clients=1, timeout=90, deadline=deadline
    )
    grid, seen = devices(2, meddle=stuck), list[Any]()
    began = exchange.time.monotonic()
    FedPrune(config, watch=Watch(row=lambda row, *_: seen.append(row))).start(grid)
    limit = {None: 90.0, 20.0: 20.0, "auto": 60.0}[deadline]
    assert limit <= exchange.time.monotonic() - began < limit + 10
    reasons = [row["failures"][0]["reason"] for row in seen]
    assert reasons == [f"no reply within {limit:g} s", *[NOT_AWAITED] * 3]
    assert grid.kinds(78).count("query.hello") == 5, "greeted anew each time"


def test_who_missed_a_deadline_is_out_until_it_answers_a_greeting(devices: Any):
    awake = [True]

    def asleep(node: int, _: Message, reply: Message) -> Message | None:
        return reply if awake[0] or node != 78 else None

    fleet = Fleet(devices(2, meddle=asleep), tiny(engine="flower", clients=2, cohort=2))
    assert list(fleet.present()) == [0, 1]
    awake[0] = False
    fleet.heard(78, exchange.Lost("no reply within 9 s", late=True), "tune")
    assert list(fleet.present()) == [0]
    assert fleet.assignments([0, 1]) == [(79, [0]), (None, [1])]
    assert fleet.absent([1]).reason == "missed a deadline, and has not answered since"
    assert not fleet.simulated()


def test_a_device_that_wakes_up_takes_part_from_the_next_phase(devices: Any):
    fleet = Fleet(devices(2), tiny(engine="flower", clients=2, cohort=2))
    fleet.present()
    fleet.heard(78, exchange.Lost("no reply within 9 s", late=True), "tune")
    assert fleet.assignments([0, 1]) == [(79, [0]), (78, [1])]


def test_a_deadline_is_of_devices_and_takes_time():
    for keys in ({"engine": "inline", "deadline": "auto"}, {"engine": "flower", "deadline": 0.0}):
        with pytest.raises(ConfigError, match=r"^deadline="):
            tiny(**keys)


@pytest.mark.parametrize(("code", "ends"), [(500, False), (503, False), (403, True)])
def test_a_busy_superlink_is_asked_again(devices: Any, code: int, ends: bool):
    class Busy(Exception):
        response = SimpleNamespace(status_code=code)

    grid, left = devices(2), {"get_node_ids": 3, "push_messages": 3, "pull_messages": 3}

    def busy(name: str) -> Any:
        usual = getattr(grid, name)

        def call(*given: Any) -> Any:
            left[name] -= 1
            if left[name] >= 0:
                raise Busy("database is locked")
            return usual(*given)

        return call

    for name in left:
        setattr(grid, name, busy(name))
    fleet = Fleet(grid, tiny(engine="flower", clients=2, cohort=2))
    if ends:
        with pytest.raises(Busy):
            fleet.present()
    else:
        assert list(fleet.present()) == [0, 1]
        assert max(left.values()) < 0
