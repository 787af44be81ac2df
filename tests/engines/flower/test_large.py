"""What is done for large models alone changes no result: here with a small one taken for large."""

import weakref
from typing import Any

import pytest
from flwr.app import Message

from fedprune import federate
from fedprune.codec.wire import Packet
from fedprune.config import configure
from fedprune.engines.flower import exchange, messages
from fedprune.engines.flower.exchange import Incoming, reply_in
from fedprune.engines.flower.grid import grid_port
from fedprune.protocol import choice
from fedprune.selection import cut
from tests.server.grids import HttpGrid

RUN = {"task": "digits", "model": "mlp", "clients": 3, "rounds": 2, "warmup": 0, "end": 1}


def no_copy(*given: Any, **more: Any) -> None:
    raise AssertionError(f"all scores at once: {given}, {more}")


@pytest.mark.parametrize("combine", ["sum", "votes"])
def test_a_model_taken_for_large_gives_the_same_bits(
    devices: Any, monkeypatch: pytest.MonkeyPatch, combine: str
):
    config = configure({**RUN, "combine": combine, "local_steps": 1})
    rows = [federate(config, grid_port(devices(3), config)).rows]
    monkeypatch.setattr(cut, "VERY_MANY", 1)
    monkeypatch.setattr(messages, "PIECE", 1000)
    monkeypatch.setattr(choice, "select_by", no_copy)
    monkeypatch.setattr(exchange, "TOGETHER", 1)
    grid: Any = HttpGrid(devices(3))
    packets, alive = list[weakref.ref[Packet]](), set[int]()

    def read(message: Message) -> Incoming:
        alive.add(sum(packet() is not None for packet in packets))
        packet = reply_in(message)
        if isinstance(packet, Packet) and packet.buffers:
            packets.append(weakref.ref(packet))
        return packet

    monkeypatch.setattr(exchange, "reply_in", read)
    rows.append(federate(config, grid_port(grid, config)).rows)
    assert rows[0] == rows[1]
    assert set(grid.pulled) == {1, 3}, "answers one by one, greetings together"
    assert alive == {0}, "each is gone before the next one is read"
    assert rows[0][-1]["sparsity"] > 0.5
    assert not rows[0][-1]["failures"]
