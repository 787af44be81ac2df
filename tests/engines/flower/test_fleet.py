"""Who is there: nodes that come late, leave, double, are of other versions, or cannot take part."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedprune import TASKS, ConfigError
from fedprune.engines.flower import client_hosts
from fedprune.engines.flower import fleet as module
from fedprune.engines.flower.announced import greeting
from fedprune.engines.flower.client_app import app
from fedprune.engines.flower.clocks import CLOCK
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.messages import packet_in, records
from fedprune.engines.flower.strategy import FedPrune
from fedprune.protocol.versions import OWN_VERSION, PROTOCOL
from fedprune.runtime.version import RELEASE
from tests.runs import tiny
from tests.server.grids import HttpGrid, at, no_reply


def config_of(**changes):
    return tiny(**{"clients": 3, "cohort": 2, **changes})


def seen(grid, **changes):
    """A grid, and a fleet that has looked at who is there."""
    fleet = Fleet(grid, config_of(**changes))
    fleet.present()
    return grid, fleet


def test_a_worker_can_serve_every_partition(workers):
    fleet = Fleet(workers(2), config_of())
    assert list(fleet.present()) == [0, 1, 2]
    assert fleet.simulated()
    assert fleet.assignments([0, 1, 2]) == [(89, [0, 1]), (90, [2])]
    # One greeting answered is enough: the others can serve the same partitions.
    fleet = Fleet(workers(2, meddle=at(90, "", no_reply)), config_of())
    assert list(fleet.present()) == [0, 1, 2]
    assert [node for node, _ in fleet.assignments([0, 1, 2])] == [89, 90]


def test_a_device_is_asked_for_its_own_partition(devices):
    fleet = Fleet(devices(2), config_of())
    assert fleet.present() == {0: 48, 1: 32}
    assert not fleet.simulated()
    assert fleet.assignments([0, 1]) == [(79, [0]), (78, [1])]


def test_the_first_round_waits_for_a_cohort(devices, joined, folders):
    def come(grid):
        if grid.looks == 5:
            grid.contexts[7] = joined(7, 1, folders[1])

    grid = devices(1, before=come)
    assert list(Fleet(grid, config_of()).present()) == [0, 1]
    assert grid.looks >= 5


def test_no_wait_is_longer_than_the_timeout(devices):
    began = module.time.monotonic()
    assert list(Fleet(devices(1), config_of(timeout=9.0)).present()) == [0]
    assert list(Fleet(devices(0), config_of(timeout=9.0)).present()) == []
    assert 18.0 < module.time.monotonic() - began < 19.0


def test_what_was_waited_for_in_vain_is_not_waited_for_again(devices):
    grid, fleet = seen(devices(2), min_clients=2)
    away = grid.contexts.pop(78)
    looks = []
    for there in ({}, {}, {78: away}, {}):
        grid.contexts = {79: grid.contexts[79], **there}
        before, fleet.gathering = grid.looks, True
        fleet.present()
        looks.append(grid.looks - before)
    assert looks[0] > 5, "it is waited for"
    assert looks[1] == 1, "in vain, so not again"
    assert looks[3] > 5, "it had come back, so it is"


def test_a_later_round_waits_for_the_minimum_and_only_at_its_beginning(devices):
    grid, fleet = seen(devices(2), min_clients=2)
    gone = grid.contexts.pop(78)
    looks = grid.looks
    assert list(fleet.present()) == [0]
    assert grid.looks == looks + 1, "within a round nobody waits"
    fleet.gathering = True
    grid.before = lambda g: g.contexts.update({78: gone}) if g.looks > looks + 5 else None
    assert list(fleet.present()) == [0, 1]


def test_who_comes_later_joins(devices, joined, folders):
    grid, fleet = seen(devices(2))
    grid.contexts[3] = joined(3, 2, folders[2])
    fleet.present()
    assert fleet.present() == {0: 48, 1: 32, 2: 64}
    assert fleet.news.take() == ((), ())


def test_who_left_is_not_there(devices):
    grid, fleet = seen(devices(2))
    del grid.contexts[79]
    assert list(fleet.present()) == [1]
    assert fleet.assignments([0, 1]) == [(None, [0]), (78, [1])]
    grid.contexts.clear()
    fleet.present()
    assert [node for node, _ in fleet.assignments([0, 1, 2])] == [None] * 2


def test_of_two_with_one_partition_the_first_holds_it(devices, joined, folders):
    grid, fleet = seen(devices(2))
    grid.contexts[3] = joined(3, 1, folders[2])
    fleet.present()
    assert fleet.present() == {0: 48, 1: 32}
    failed, (said,) = fleet.news.take()
    assert failed == (), "who holds it did nothing wrong"
    assert said.startswith("node 3 announces partition 1 as the second one and is not asked; ")
    fleet.present()
    assert fleet.news.take() == ((), ()), "it is told once"
    del grid.contexts[78]
    assert fleet.present() == {0: 48, 1: 64}, "it takes over when the old one is gone"


@pytest.mark.parametrize("readable", [True, False])
def test_why_a_device_cannot_read_its_data_is_one_line_in_its_log(
    joined, folders, devices, monkeypatch, caplog, readable
):
    monkeypatch.setattr(client_hosts.os, "access", lambda *_: readable)
    grid = devices(0)
    grid.contexts[7] = joined(7, 0, folders[3])
    Fleet(grid, config_of(timeout=9.0)).present()
    (said,) = (r for r in caplog.records if r.message.startswith("this node cannot take part"))
    assert ("no *.npz there" if readable else "may not be read by this user") in said.message
    assert said.exc_info is None


def test_of_two_with_the_same_data_the_first_is_asked(devices, joined, folders, tmp_path):
    """By another name, too; the other takes its place once it is gone."""
    (tmp_path / "link").symlink_to(folders[0])
    grid = devices(1)
    grid.contexts[3] = joined(3, 1, tmp_path / "link")
    fleet = Fleet(grid, config_of(min_clients=1, cohort=1))
    assert list(fleet.present()) == list(fleet.present()) == [0]
    failed, (said,) = fleet.news.take()
    assert failed == ()
    own = "node 3 has the same data as node 79 and is not asked; allowed: a folder of its own"
    assert said.startswith(own)
    assert "link" not in said
    del grid.contexts[79]
    assert list(fleet.present()) == [1]


def test_two_with_one_partition_are_not_waited_for(devices, joined):
    grid = devices(1)
    grid.contexts[3] = joined(3, 0, Path(grid.contexts[79].node_config["data"]))
    fleet = Fleet(grid, config_of())
    assert list(fleet.present()) == [0]
    assert ["partition 0" in said for said in fleet.news.take()[1]] == [True]


def test_a_device_without_data_is_told_of_once_and_is_not_waited_for(devices, joined, folders):
    grid = devices(1)
    grid.contexts[3] = joined(3, 1, folders[3])
    fleet = Fleet(grid, config_of())
    assert list(fleet.present()) == [0]
    ((told,), said) = fleet.news.take()
    assert (told.partition, told.phase, said) == (1, "hello", ())
    assert f"data={folders[3]}: no *.npz there" in told.reason
    fleet.present()
    assert fleet.news.take() == ((), ())
    assert grid.kinds(3) == ["query.hello"]


def test_of_whom_nothing_is_heard_is_told_once_with_what_that_may_be(devices, joined, folders):
    grid = devices(1)
    grid.contexts[3] = joined(3, 1, folders[3])  # it has no data, and says so itself
    fleet = Fleet(HttpGrid(grid), config_of(clients=15, cohort=2))
    assert list(fleet.present()) == [0]
    (said,) = fleet.news.take()[1]
    wanted = "nothing is heard of client 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more: not started, no"
    assert said.startswith(wanted)
    assert "refused for its key or its clock" in said
    fleet.present()
    assert fleet.news.take() == ((), ())
    alone = Fleet(HttpGrid(devices(2)), config_of(clients=2))
    alone.present()
    assert alone.news.take() == ((), ())


def test_a_simulation_that_cannot_serve_ends(workers):
    config = tiny(task="fashion-mnist", data="/nowhere", split="iid")
    with pytest.raises(ConfigError, match=r"^data=/nowhere: no train-images"):
        Fleet(workers(2), config).present()


def test_a_simulation_whose_task_is_none_ends_before_it_is_asked(workers, monkeypatch):
    broken = replace(TASKS["digits"], loss=lambda _model, batch: batch["pictures"])
    monkeypatch.setitem(TASKS, "digits", broken)
    grid = workers(2)
    with pytest.raises(
        ConfigError, match=r"^task='digits': the loss .* fails: KeyError: 'pictures'"
    ):
        FedPrune(tiny(seed=41)).start(grid)
    assert set(grid.kinds(next(iter(grid.contexts)))) == {"query.hello"}


def test_a_node_without_data_does_not_stand_in_for_devices(devices, workers, joined, folders):
    grid = devices(2)
    grid.contexts |= workers(1).contexts
    fleet = Fleet(grid, config_of())
    fleet.present()
    assert fleet.present() == {0: 48, 1: 32}
    del grid.contexts[79], grid.contexts[78]
    grid.contexts |= {3: joined(3, 0, folders[3])}
    fleet.present()
    assert list(fleet.present()) == [], "not even for those that cannot take part"


HELLOS = [
    {"labels": None},
    {"labels": {"one": 3}},
    {"labels": {"1": 1e999}},
    {"labels": {}, "failure": 3},
    {"device": False, "labels": {}, "failure": {
        "partition": 0, "phase": "hello", "field": "", "reason": "no room"}},
    {"device": False, "labels": {str(p): 5 for p in range(3)}},
    {"labels": {str(p): 1 for p in range(200_000)}},
    {"labels": {"-5": 1}},
    {"labels": {"3": 1}},
    {"labels": {"0": 10**400}},
    {"labels": {"2": 5}, "clock": "inf 0"},
    {"labels": {"2": 5}, "clock": "1 2 3"},
]  # fmt: skip
"""What a node may say of itself and cannot be."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 99999, *(json.dumps(OWN_VERSION | {"device": True} | h) for h in HELLOS)],
    ids=lambda text: text[:70],
)
def test_a_node_that_announces_what_cannot_be_takes_no_part(devices, text, caplog):
    def announced(_, reply):
        reply.content["fields"] = ConfigRecord({"about": text})
        return reply

    grid = devices(3, meddle=at(77, "query.hello", announced))
    fleet = Fleet(HttpGrid(grid), config_of(cohort=3, min_clients=3, timeout=9.0))
    assert list(fleet.present()) == [0, 1]
    assert grid.kinds(77) == ["query.hello"] * 2, "asked once more"
    assert "could not join" in caplog.text
    assert len(caplog.text) < 3000


@pytest.mark.parametrize("content", [Error(code=0, reason="no torch here"), RecordDict()])
def test_a_node_that_cannot_say_hello_is_not_joined(devices, content, caplog):
    other = at(78, "", lambda question, _: Message(content, reply_to=question))
    fleet = Fleet(devices(2, meddle=other), config_of())
    assert list(fleet.present()) == [0]
    assert "could not join" in caplog.text


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"version": "9.9", "protocol": PROTOCOL + 1},
            f"fedprune 9.9 (protocol {PROTOCOL + 1}), this server {RELEASE}",
        ),
        ({"version": None, "protocol": None}, "fedprune unknown (protocol unknown), this server"),
        ({"version": "9.9"}, "fedprune 9.9, the server"),
    ],
    ids=str,
)
def test_a_device_of_another_version(devices, caplog, said, words):
    def meddle(node, _, reply):
        fields = reply.content.config_records["fields"]
        about = {**json.loads(str(fields["about"])), **said}
        if node == 77:
            fields["about"] = json.dumps({k: v for k, v in about.items() if v is not None})
        return reply

    fleet = Fleet(devices(3, meddle=meddle), config_of(cohort=3, min_clients=2, timeout=9.0))
    refused = "protocol" in said
    assert list(fleet.present()) == ([0, 1] if refused else [0, 1, 2])
    (notice,) = fleet.news.take()[1]
    assert words in notice
    assert ("allowed: the same protocol" in notice) == refused
    assert notice in caplog.text


@pytest.mark.parametrize("late", [0, -10])
def test_a_device_that_was_refused_for_its_clock_says_so_in_the_run_in_which_it_was(
    devices, monkeypatch, late
):
    fleet = Fleet(devices(3), config_of(cohort=3, min_clients=2, timeout=9.0))
    monkeypatch.setenv(CLOCK, f"-301 {fleet.news.began + late}")
    assert list(fleet.present()) == [0, 1, 2]
    notices = fleet.news.take()[1]
    assert len(notices) == (0 if late else 3)
    wanted = "was refused until now: its clock was 301 s behind the SuperLink's"
    assert all(wanted in each for each in notices)


@pytest.mark.parametrize("protocol", [None, PROTOCOL + 1])
def test_a_server_of_another_version(devices, caplog, protocol):
    grid = devices(1)
    (context,) = grid.contexts.values()
    asked = greeting("brand-new = 1\n")
    fields = {**asked.fields, "version": "9.9", "protocol": protocol}
    kept = {k: v for k, v in fields.items() if v is not None}
    reply = app(Message(records(type(asked)(kept)), 79, "query.hello"), context)
    about = json.loads(str(packet_in(reply).fields["about"]))
    line = f"this device {RELEASE} ({PROTOCOL}); allowed: the same protocol"
    assert line in about["failure"]["reason"]
    assert line in caplog.text
    assert "Traceback" not in caplog.text


def test_a_node_without_a_partition_is_told_so(devices, folders, joined):
    grid = devices(2)
    grid.contexts[5] = joined(5, 0, folders[2])
    del grid.contexts[5].node_config["partition-id"]
    fleet = Fleet(grid, config_of(cohort=3))
    assert list(fleet.present()) == [0, 1]
    failed, (said,) = fleet.news.take()
    assert failed == ()
    assert "partition-id=None: no partition; allowed: a number" in said
