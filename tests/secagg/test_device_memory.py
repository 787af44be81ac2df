"""What a device remembers: one vector and one opening a sum, the same words if asked again."""

import os
import tempfile
from dataclasses import replace

import pytest

from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.protocol.failures import Failure
from fedprune.secagg.device_memory import DeviceMemory, served_once
from fedprune.secagg.messages import Call, StageReply
from fedprune.secagg.packets import reply_packet

KEYS = Call("keys", b"first", (1, 2, 3))
SHARES = replace(KEYS, stage="shares", roster={1: bytes(96)})
MASKED = replace(SHARES, stage="masked", shared=frozenset({1, 2, 3}))
CONFIRM = replace(MASKED, stage="confirm", summed=frozenset({1, 2, 3}))
UNMASK = replace(CONFIRM, stage="unmask")
QUESTION = Packet({"head": b"{}"}, {"values": b"1234"})


class Device:
    """Serves with whatever seed it is given, and writes the seeds down."""

    def __init__(self) -> None:
        self.memory: DeviceMemory | None = None
        self.seeds: list[bytes] = []
        self.refuses = False
        self.under = "a configuration"

    def ask(self, call: Call, packet: Packet | None = None) -> Packet:
        self.memory, reply = served_once(self.memory, call, packet, self._serve, self.under)
        return reply

    def _serve(self, seed: bytes) -> StageReply:
        self.seeds.append(seed)
        if self.refuses:
            return StageReply(failures=(Failure(1, "unmask", "secure", "no"),))
        return StageReply(shares={1: {2: seed}})

    def through(self) -> None:
        self.ask(KEYS)
        self.ask(SHARES)
        self.ask(MASKED, QUESTION)
        self.ask(CONFIRM)


def test_one_seed_a_sum_and_another_one_in_the_next():
    device = Device()
    device.through()
    device.ask(KEYS)
    assert len(set(device.seeds)) == 1
    assert len(device.seeds[0]) == 32
    device.ask(replace(KEYS, session=b"second"))
    assert len(set(device.seeds)) == 2


def test_the_seed_is_gone_once_the_sum_is_open_and_the_reply_can_be_had_again():
    device = Device()
    device.through()
    first = device.ask(UNMASK)
    assert device.memory.seed == b""
    served = len(device.seeds)
    assert device.ask(UNMASK) == first
    assert len(device.seeds) == served
    with pytest.raises(Refused, match="open already"):
        device.ask(MASKED, QUESTION)
    device.ask(KEYS)
    assert device.seeds[-1] != device.seeds[0], "keys of an open sum are new ones"


@pytest.mark.parametrize(
    ("call", "packet"),
    [
        (MASKED, replace(QUESTION, buffers={"values": b"1235"})),
        (MASKED, replace(QUESTION, fields={"head": b"{ }"})),
        (replace(MASKED, shared=frozenset({1, 2})), QUESTION),
        (replace(MASKED, open=b"x"), QUESTION),
        (replace(MASKED, roster={1: bytes(95) + b"1"}), QUESTION),
        (MASKED, None),
        (replace(CONFIRM, summed=frozenset({1, 2})), None),
        (replace(UNMASK, summed=frozenset({1, 2})), None),
    ],
)
def test_a_second_and_different_request_of_a_stage_is_refused(call, packet):
    """The difference of two vectors under one mask would show, or both shares of a neighbour.

    The vector's question may be the same under another configuration, the server's to choose.
    """
    device = Device()
    device.through()
    assert device.ask(MASKED, QUESTION) == device.ask(MASKED, QUESTION)
    assert device.ask(CONFIRM) == device.ask(CONFIRM)
    if call.stage == "unmask":
        device.ask(UNMASK)
    if call is MASKED and packet is None:
        device.under, packet = "another configuration, or other data", QUESTION
    with pytest.raises(Refused, match="second, different request"):
        device.ask(call, packet)


def test_who_refused_to_open_has_said_nothing_and_keeps_its_seed():
    device = Device()
    device.through()
    device.refuses = True
    device.ask(replace(UNMASK, summed=frozenset({1})))
    device.refuses = False
    opened = device.ask(UNMASK)
    assert opened.buffers == reply_packet(StageReply(shares={1: {2: device.seeds[0]}})).buffers


@pytest.mark.parametrize("call", [SHARES, MASKED, UNMASK])
def test_of_another_session_nothing_is_known(call):
    device = Device()
    with pytest.raises(Refused, match="showed no keys"):
        device.ask(call, QUESTION)
    device.ask(replace(KEYS, session=b"second"))
    with pytest.raises(Refused, match="showed no keys"):
        device.ask(call, QUESTION)


def test_a_sum_that_the_device_gave_nothing_to_is_not_opened():
    device = Device()
    device.ask(KEYS)
    for call in (CONFIRM, UNMASK):
        with pytest.raises(Refused, match="gave nothing"):
            device.ask(call)


OTHERS = {
    "masked": (MASKED, replace(MASKED, shared=frozenset({1, 2}))),
    "confirm": (CONFIRM, replace(CONFIRM, summed=frozenset({1, 2}))),
    "unmask": (UNMASK, replace(UNMASK, summed=frozenset({1, 2}))),
}


@pytest.mark.parametrize("stage", OTHERS)
def test_of_two_requests_at_once_one_is_answered(stage):
    """Flower's processes both begin with the memory of before; what is on disk is of both."""
    first, second = OTHERS[stage]
    device = Device()
    for call in (KEYS, SHARES, MASKED, CONFIRM)[: 2 + list(OTHERS).index(stage)]:
        device.ask(call, QUESTION if call.stage == "masked" else None)
    before, packet = device.memory, QUESTION if stage == "masked" else None
    answer = device.ask(first, packet)
    device.memory = before
    with pytest.raises(Refused, match="second, different request"):
        device.ask(second, packet)
    assert device.memory == before
    assert device.ask(first, packet) == answer


def test_where_nothing_can_be_written_down_nothing_is_given(monkeypatch, tmp_path):
    device = Device()
    device.ask(KEYS)
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(Refused, match="cannot be written down"):
        device.ask(MASKED, QUESTION)


def test_what_is_written_down_is_forgotten_a_day_later(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    device = Device()
    device.through()
    (folder,) = tmp_path.iterdir()
    old, kept = sorted(set(folder.iterdir()) - {folder / "looked"})
    os.utime(old, (0, 0), follow_symlinks=False)
    device.ask(KEYS)
    assert old.is_symlink(), "looked through at most once an hour"
    os.utime(folder / "looked", (0, 0))
    device.ask(KEYS)
    assert {*folder.iterdir()} == {kept, folder / "looked"}
    assert folder.stat().st_mode & 0o777 == 0o700
