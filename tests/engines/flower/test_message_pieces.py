"""Packets as Flower's messages and back: in pieces, over the packet's own memory."""

import pickle

import pytest
from flwr.app import ConfigRecord, Message

from fedprune.codec.wire import Packet
from fedprune.engines.flower import messages
from fedprune.engines.flower.messages import let_go, packet_in, records
from fedprune.runtime.process import resident
from tests.server.grids import delivered


@pytest.fixture(autouse=True)
def _pieces_of_eight(monkeypatch):
    monkeypatch.setattr(messages, "PIECE", 8)


BUFFERS = {"empty": b"", "8": bytes(range(8)), "9": bytes(range(9)), "1.values": bytes(range(200))}
PACKET = Packet({"head": "{}"}, BUFFERS)


def test_what_is_sent_is_what_came_and_the_message_holds_none_of_it_then():
    sent = Message(records(PACKET), 1, "train.tune")
    assert sent.content.array_records["buffers"].keys() == {"empty", "8"}
    came = delivered(sent)
    pieces = [r for name, r in came.content.config_records.items() if name != "fields"]
    assert max(len(piece["bytes"]) for piece in pieces) == 8
    assert packet_in(came) == PACKET
    assert not came.content.array_records["buffers"]
    assert not any(r for name, r in came.content.config_records.items() if name != "fields")


def test_what_flowers_simulation_pickles_is_what_came():
    sent = records(PACKET)
    came = pickle.loads(pickle.dumps(sent))
    counted = {n: r.count_bytes() for n, r in sent.config_records.items()}
    assert counted == {n: r.count_bytes() for n, r in came.config_records.items()}
    assert packet_in(Message(came, 1, "train.tune")) == PACKET


def test_neither_side_holds_a_large_buffer_twice(monkeypatch):
    monkeypatch.setattr(messages, "PIECE", 2**21)
    size = 2**25
    monkeypatch.setattr(ConfigRecord, "clear", look := Looked(ConfigRecord.clear))
    before = resident()
    sent = Message(records(Packet({}, {"values": memoryview(bytearray(size))})), 1, "train.tune")
    assert resident() - before < 1.25 * size, "the packet's own memory, and no copy"
    came = delivered(sent)
    let_go(sent)
    look.at.clear()
    before = resident()
    whole = packet_in(came).buffers["values"]
    assert look.at[0] - before < size / 4, "its memory is taken as the pieces go"
    assert whole.nbytes == size


class Looked:
    """A method that is called with a look at the memory that the process has then, in `at`."""

    def __init__(self, method):
        self.method, self.at = method, []

    def __get__(self, record, kind):
        def cleared():
            self.at.append(resident())
            self.method(record)

        return cleared


def test_small_buffers_are_of_the_packets_own_memory_and_copies_are_shared():
    whole = memoryview(bytearray(8))
    packet = Packet({}, {"values": whole})
    sent = records(packet)["buffers"]["values"]
    whole[7] = 7
    assert sent.data[7] == 7
    copies = {}
    first, second = (records(packet, copies)["buffers"]["values"].data for _ in range(2))
    assert first is second
    whole[7] = 8
    assert first[7] == 7


@pytest.mark.parametrize("change", ["gone", "another", "text"])
def test_a_packet_with_a_piece_that_is_none_is_none(change):
    sent = delivered(Message(records(PACKET), 1, "train.tune"))
    pieces = sent.content.config_records
    if change == "text":
        pieces["1.values/3"]["bytes"] = "x"
    else:
        del sent.content["1.values/3"]
    if change == "another":
        sent.content["1.values/x"] = ConfigRecord({"bytes": b"x"})
    with pytest.raises((KeyError, TypeError)):
        packet_in(sent)
