"""Who is there: nodes that come late, leave, double, or cannot take part."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedprune import TASKS, RunConfig
from fedprune.engines.flower import client_hosts
from fedprune.engines.flower import fleet as module
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.strategy import FedPrune
from fedprune.options.refusal import ConfigError
from tests.runs import tiny
from tests.server.grids import HttpGrid


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    def made(**changes: Any) -> RunConfig:
        return tiny(**{"clients": 3, "cohort": 2, **changes})

    return made


def test_a_worker_can_serve_every_partition(workers, config):
    fleet = Fleet(workers(2), config())
    assert list(fleet.present()) == [0, 1, 2]
    assert fleet.simulated()
    assert fleet.assignments([0, 1, 2]) == [(89, [0, 1]), (90, [2])]


def test_any_worker_will_do(workers, config):
    """One greeting answered is enough: the others can serve the same partitions."""

    def first_only(node: int, _: Message, reply: Message) -> Message | None:
        return reply if node == 89 else None

    fleet = Fleet(workers(2, meddle=first_only), config())
    assert list(fleet.present()) == [0, 1, 2]
    assert [node for node, _ in fleet.assignments([0, 1, 2])] == [89, 90]


def test_a_device_is_asked_for_its_own_partition(devices, config):
    fleet = Fleet(devices(2), config())
    assert fleet.present() == {0: 48, 1: 32}
    assert not fleet.simulated()
    assert fleet.assignments([0, 1]) == [(79, [0]), (78, [1])]


def test_the_first_round_waits_for_a_cohort(devices, config, joined, folders):
    def come(grid: Any) -> None:
        if grid.looks == 5:
            grid.contexts[7] = joined(7, 1, folders[1])

    grid = devices(1, before=come)
    assert list(Fleet(grid, config()).present()) == [0, 1]
    assert grid.looks >= 5


def test_no_wait_is_longer_than_the_timeout(devices, config):
    began = module.time.monotonic()
    assert list(Fleet(devices(1), config(timeout=9.0)).present()) == [0]
    assert list(Fleet(devices(0), config(timeout=9.0)).present()) == []
    assert 18.0 < module.time.monotonic() - began < 19.0


def test_what_was_waited_for_in_vain_is_not_waited_for_again(devices, config):
    grid = devices(2)
    fleet = Fleet(grid, config(min_clients=2))
    fleet.present()
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


def test_a_later_round_waits_for_the_minimum_and_only_at_its_beginning(devices, config):
    grid = devices(2)
    fleet = Fleet(grid, config(min_clients=2))
    fleet.present()
    gone = grid.contexts.pop(78)
    looks = grid.looks
    assert list(fleet.present()) == [0]
    assert grid.looks == looks + 1, "within a round nobody waits"
    fleet.gathering = True
    grid.before = lambda g: g.contexts.update({78: gone}) if g.looks > looks + 5 else None
    assert list(fleet.present()) == [0, 1]


def test_who_comes_later_joins(devices, config, joined, folders):
    grid = devices(2)
    fleet = Fleet(grid, config())
    fleet.present()
    grid.contexts[3] = joined(3, 2, folders[2])
    fleet.present()
    assert fleet.present() == {0: 48, 1: 32, 2: 64}
    assert fleet.news.take() == ((), ())


def test_who_left_is_not_there(devices, config):
    grid = devices(2)
    fleet = Fleet(grid, config())
    fleet.present()
    del grid.contexts[79]
    assert list(fleet.present()) == [1]
    assert fleet.assignments([0, 1]) == [(None, [0]), (78, [1])]
    grid.contexts.clear()
    fleet.present()
    assert [node for node, _ in fleet.assignments([0, 1, 2])] == [None] * 2


def test_of_two_with_one_partition_the_first_holds_it(devices, config, joined, folders):
    grid = devices(2)
    fleet = Fleet(grid, config())
    fleet.present()
    grid.contexts[3] = joined(3, 1, folders[2])
    fleet.present()
    assert fleet.present() == {0: 48, 1: 32}
    failed, (said,) = fleet.news.take()
    assert failed == (), "who holds it did nothing wrong"
    assert said.startswith("node 3 announces partition 1 as the second one and is not asked; ")
    fleet.present()
    assert fleet.news.take() == ((), ()), "it is told once"
    del grid.contexts[78]
    assert fleet.present() == {0: 48, 1: 64}, (
        "started again: it takes over when the old one is gone"
    )


@pytest.mark.parametrize("readable", [True, False])
def test_why_a_device_cannot_read_its_data_is_one_line_in_its_log(
    config, joined, folders, devices, monkeypatch, caplog, readable
):
    monkeypatch.setattr(client_hosts.os, "access", lambda *_: readable)
    grid = devices(0)
    grid.contexts[7] = joined(7, 0, folders[3])
    Fleet(grid, config(timeout=9.0)).present()
    (said,) = (r for r in caplog.records if r.message.startswith("this node cannot take part"))
    assert ("no *.npz there" if readable else "may not be read by this user") in said.message
    assert said.exc_info is None


def test_of_two_with_the_same_data_the_first_is_asked(devices, config, joined, folders, tmp_path):
    """By another name, too; the other takes its place once it is gone."""
    (tmp_path / "link").symlink_to(folders[0])
    grid = devices(1)
    grid.contexts[3] = joined(3, 1, tmp_path / "link")
    fleet = Fleet(grid, config(min_clients=1, cohort=1))
    assert list(fleet.present()) == list(fleet.present()) == [0]
    failed, (said,) = fleet.news.take()
    assert failed == ()
    own = "node 3 has the same data as node 79 and is not asked; allowed: a folder of its own"
    assert said.startswith(own)
    assert "link" not in said
    del grid.contexts[79]
    assert list(fleet.present()) == [1]


def test_two_with_one_partition_are_not_waited_for(devices, config, joined):
    grid = devices(1)
    grid.contexts[3] = joined(3, 0, Path(grid.contexts[79].node_config["data"]))
    fleet = Fleet(grid, config())
    assert list(fleet.present()) == [0]
    assert ["partition 0" in said for said in fleet.news.take()[1]] == [True]


def test_a_device_without_data_is_told_of_once_and_is_not_waited_for(
    devices, config, joined, folders
):
    grid = devices(1)
    grid.contexts[3] = joined(3, 1, folders[3])
    fleet = Fleet(grid, config())
    assert list(fleet.present()) == [0]
    ((told,), said) = fleet.news.take()
    assert (told.partition, told.phase, said) == (1, "hello", ())
    assert f"data={folders[3]}: no *.npz there" in told.reason
    fleet.present()
    assert fleet.news.take() == ((), ())
    assert grid.kinds(3) == ["query.hello"]


def test_of_whom_nothing_is_heard_is_told_once_with_what_that_may_be(
    devices, config, joined, folders
):
    grid = devices(1)
    grid.contexts[3] = joined(3, 1, folders[3])  # it has no data, and says so itself
    fleet = Fleet(HttpGrid(grid), config(clients=15, cohort=2))  # type: ignore[arg-type]
    assert list(fleet.present()) == [0]
    (said,) = fleet.news.take()[1]
    wanted = "nothing is heard of client 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more: not started, no"
    assert said.startswith(wanted)
    assert "refused for its key or its clock" in said
    fleet.present()
    assert fleet.news.take() == ((), ())
    alone = Fleet(HttpGrid(devices(2)), config(clients=2))  # type: ignore[arg-type]
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
        ConfigError, match=r"^task='digits': the loss of 4 examples fails: KeyError: 'pictures'; a"
    ):
        FedPrune(tiny(seed=41)).start(grid)
    assert set(grid.kinds(next(iter(grid.contexts)))) == {"query.hello"}


def test_a_node_without_data_does_not_stand_in_for_devices(
    devices, workers, config, joined, folders
):
    grid = devices(2)
    grid.contexts |= workers(1).contexts
    fleet = Fleet(grid, config())
    fleet.present()
    assert fleet.present() == {0: 48, 1: 32}
    del grid.contexts[79], grid.contexts[78]
    grid.contexts |= {3: joined(3, 0, folders[3])}
    fleet.present()
    assert list(fleet.present()) == [], "not even for those that cannot take part"


def announcing(text: str) -> Callable[..., Message]:
    def meddle(node: int, _: Message, reply: Message) -> Message:
        if node == 78:
            reply.content.config_records["fields"] = ConfigRecord({"about": text})
        return reply

    return meddle


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 99999,
        json.dumps({"device": True}),
        json.dumps({"device": True, "labels": {"one": 3}}),
        json.dumps({"device": True, "labels": {"1": 1e999}}),
        json.dumps({"device": True, "labels": {}, "failure": 3}),
    ],
    ids=lambda text: text[:30],
)
def test_a_malformed_announcement_is_not_joined(devices, config, text, caplog):
    grid = devices(2, meddle=announcing(text))
    fleet = Fleet(grid, config())
    assert list(fleet.present()) == [0]
    assert grid.kinds(78) == ["query.hello"] * 2, "asked once more"
    assert "could not join: hello: malformed" in caplog.text


@pytest.mark.parametrize("content", [Error(code=0, reason="no torch here"), RecordDict()])
def test_a_node_that_cannot_say_hello_is_not_joined(devices, config, content, caplog):
    def meddle(node: int, question: Message, reply: Message) -> Message:
        return Message(content, reply_to=question) if node == 78 else reply

    fleet = Fleet(devices(2, meddle=meddle), config())
    assert list(fleet.present()) == [0]
    assert "could not join" in caplog.text
