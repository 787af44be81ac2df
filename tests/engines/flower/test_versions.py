"""Devices and a server of other versions: who speaks another protocol is refused, on both sides."""

import json
from typing import Any

import pytest
from flwr.app import Message

from fedprune.engines.flower.announced import greeting
from fedprune.engines.flower.client_app import app
from fedprune.engines.flower.clocks import CLOCK
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.messages import packet_in, records
from fedprune.protocol.versions import PROTOCOL
from fedprune.runtime.version import RELEASE
from tests.runs import tiny

CONFIG = tiny(clients=3, min_clients=2, timeout=9.0)


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
def test_a_device_of_another_version(devices: Any, caplog: Any, said: Any, words: str):
    def meddle(node: int, question: Message, reply: Message) -> Message:
        del question
        fields = reply.content.config_records["fields"]
        about = {**json.loads(str(fields["about"])), **said}
        if node == 77:
            fields["about"] = json.dumps({k: v for k, v in about.items() if v is not None})
        return reply

    fleet = Fleet(devices(3, meddle=meddle), CONFIG)
    refused = "protocol" in said
    assert list(fleet.present()) == ([0, 1] if refused else [0, 1, 2])
    (notice,) = fleet.news.take()[1]
    assert words in notice
    assert ("allowed: the same protocol" in notice) == refused
    assert notice in caplog.text


@pytest.mark.parametrize("late", [0, -10])
def test_a_device_that_was_refused_for_its_clock_says_so_in_the_run_in_which_it_was(
    devices: Any, monkeypatch: pytest.MonkeyPatch, late: int
):
    fleet = Fleet(devices(3), CONFIG)
    monkeypatch.setenv(CLOCK, f"-301 {fleet.news.began + late}")
    assert list(fleet.present()) == [0, 1, 2]
    notices = fleet.news.take()[1]
    assert len(notices) == (0 if late else 3)
    wanted = "was refused until now: its clock was 301 s behind the SuperLink's"
    assert all(wanted in each for each in notices)


@pytest.mark.parametrize("protocol", [None, PROTOCOL + 1])
def test_a_server_of_another_version(devices: Any, caplog: Any, protocol: int | None):
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
