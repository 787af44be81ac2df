"""How long devices are waited for: one deadline a question, and who missed it holds nobody up.

Where more are asked than count the first cohort does, and nobody waits for others.
"""

from types import SimpleNamespace

import pytest
from flwr.app import Error, Message

from fedprune import ConfigError
from fedprune.codec.wire import Packet
from fedprune.engines.flower import exchange
from fedprune.engines.flower.exchange import POLL, Outgoing
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.strategy import FedPrune
from fedprune.engines.flower.waiting import BANDWIDTH, NOT_AWAITED, SHORTEST, UNKNOWN_YET, Waiting
from fedprune.server.watch import Watch
from tests.runs import tiny
from tests.server.grids import an_error, at, honest, no_reply, run_on

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
def test_three_times_the_median_of_what_others_took(auto, size, known, took, limit):
    waiting = Waiting(7.0, 3600.0, auto, size, known, FOUR, took=took)
    assert waiting.limit() == limit
    assert waiting.over(7.0 + limit - 1e-3, FOUR) == ""
    assert waiting.over(7.0 + limit, FOUR) == f"no reply within {limit:.4g} s"


def test_nobody_waits_for_who_was_late_alone():
    waiting = Waiting(0.0, 100.0, asked=FOUR, late=frozenset({2, 3}))
    assert waiting.over(1.0, {1, 2}) == ""
    assert waiting.over(1.0, {2, 3}) == NOT_AWAITED
    assert Waiting(0.0, 100.0, asked=frozenset({2}), late=frozenset({2})).over(1.0, {2}) == ""


@pytest.mark.parametrize(("took", "most"), [(0.0, 1), (1.0, 5), (60.0, 60), (3600.0, 1850)])
def test_the_longer_a_question_lasts_the_less_often_its_replies_are_looked_for(devices, took, most):
    """And what comes is noticed at most a tenth of its time later, and never over two seconds."""
    grid, began, looks = devices(1), exchange.time.monotonic(), []

    def pulled(_):
        looks.append(exchange.time.monotonic() - began)
        sent = list(grid._sent.values())
        return [Message(Error(code=0), reply_to=m) for m in sent] if looks[-1] >= took else []

    grid.pull_messages = pulled
    mail = {(0, 0): Outgoing(79, "train.tune", Packet({"partitions": [0]}))}
    assert len(list(exchange.exchange(grid, mail, 1e9, POLL[False]))) == 1
    assert len(looks) <= most
    assert looks[-1] - took <= min(2.0, max(0.25, took / 10)) + 1e-9


@pytest.mark.sampled(1)
@pytest.mark.parametrize("deadline", [None, 20.0, "auto"])
def test_a_stuck_device_costs_one_deadline_once(devices, deadline):
    few = {"model": "mlp", "engine": "flower", "rounds": 4, "clients": 2, "cohort": 2}
    config = tiny(**few, min_clients=1, timeout=90, deadline=deadline)
    grid, seen = devices(2, meddle=at(78, "train.tune", no_reply)), []
    began = exchange.time.monotonic()
    FedPrune(config, watch=Watch(row=lambda row, *_: seen.append(row))).start(grid)
    limit = {None: 90.0, 20.0: 20.0, "auto": 60.0}[deadline]
    assert limit <= exchange.time.monotonic() - began < limit + 10
    reasons = [row["failures"][0]["reason"] for row in seen]
    assert reasons == [f"no reply within {limit:g} s", *[NOT_AWAITED] * 3]
    assert grid.kinds(78).count("query.hello") == 5, "greeted anew each time"


def test_who_missed_a_deadline_is_out_until_it_answers_a_greeting(devices):
    grid = devices(2)
    fleet = Fleet(grid, tiny(engine="flower", clients=2, cohort=2))
    assert list(fleet.present()) == [0, 1]
    grid.meddle = lambda node, _, reply: reply if node != 78 else None
    fleet.heard(78, exchange.Lost("no reply within 9 s", late=True), "tune")
    assert list(fleet.present()) == [0]
    assert fleet.assignments([0, 1]) == [(79, [0]), (None, [1])]
    assert fleet.absent([1]).reason == "missed a deadline, and has not answered since"
    assert not fleet.simulated()


def test_a_device_that_wakes_up_takes_part_from_the_next_phase(devices):
    fleet = Fleet(devices(2), tiny(engine="flower", clients=2, cohort=2))
    fleet.present()
    fleet.heard(78, exchange.Lost("no reply within 9 s", late=True), "tune")
    assert fleet.assignments([0, 1]) == [(79, [0]), (78, [1])]


def test_a_deadline_is_of_devices_and_takes_time():
    for keys in ({"engine": "inline", "deadline": "auto"}, {"engine": "flower", "deadline": 0.0}):
        with pytest.raises(ConfigError, match=r"^deadline="):
            tiny(**keys)


@pytest.mark.parametrize(("code", "ends"), [(500, False), (503, False), (403, True)])
def test_a_busy_superlink_is_asked_again(devices, code, ends):
    class Busy(Exception):
        response = SimpleNamespace(status_code=code)

    grid, left = devices(2), {"get_node_ids": 3, "push_messages": 3, "pull_messages": 3}

    def busy(name):
        usual = getattr(grid, name)

        def call(*given):
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


RUN = {"engine": "flower", "clients": 3, "cohort": 2, "over_select": 1.5, "min_clients": 2}
RUN |= {"model": "mlp", "timeout": 60.0, "rounds": 2, "warmup": 0, "end": 1}


def over_selected(grid, **changes):
    return run_on(grid, tiny(**RUN | changes))


silent = at(78, "train", no_reply)
"""Node 78, partition 1, takes long over what a cohort is asked."""


@pytest.mark.slow
def test_the_first_cohort_of_answers_counts_and_a_slow_one_holds_nobody_up(devices):
    result = over_selected(devices(3, meddle=silent))
    assert [len(row["cohort"]) for row in result.rows] == [3, 3]
    assert {row["answered"] for row in result.rows} == {2}
    assert result.summary["failures"] == 0
    slow = "tune: enough others were faster than client 1"
    assert all(slow in row["notices"] for row in result.rows)
    others = over_selected(devices(3, meddle=silent), over_select=1.0, min_clients=1, timeout=9.0)
    assert others.summary["failures"] > 0


@pytest.mark.slow
def test_a_reply_that_comes_with_the_last_one_needed_is_paid_for_and_counts_nothing(devices):
    all_there, two = (over_selected(devices(3, meddle=m)) for m in (honest, silent))
    assert {row["answered"] for row in all_there.rows} == {2}
    three, both = all_there.state.book.traffic.up, two.state.book.traffic.up
    assert 2 * three == pytest.approx(3 * both, rel=0.01)


def test_who_fails_has_failed_however_many_others_are_there(devices):
    # Node 77 is the first one that a look at this grid finds.
    result = over_selected(devices(3, meddle=at(77, "train.tune", an_error)))
    assert {row["answered"] for row in result.rows} == {2}
    assert result.summary["failures"] == 2
    assert "tune:" not in str([row["notices"] for row in result.rows])


def test_workers_of_a_simulation_are_refused_before_anything_is_asked(workers):
    grid = workers(2)
    with pytest.raises(ConfigError, match=r"^over_select=1\.5: nodes are workers of a simulation"):
        over_selected(grid)
    assert {kind for _, kind, *_ in grid.asked} == {"query.hello"}
