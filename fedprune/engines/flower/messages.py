"""Packets as Flower's messages: the fields as a ConfigRecord, each buffer as an Array of bytes."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import Packet

Copies = dict[int, tuple[Buffer, bytes]]
"""Buffers and their bytes, by the buffer's `id`."""


def records(packet: Packet, copies: Copies | None = None) -> RecordDict:
    """A packet as the content of a message.

    Args:
        packet: what is sent.
        copies: of buffers that many packets share: each is copied once, and kept there.
    """
    copies = {} if copies is None else copies
    arrays = {
        name: Array("uint8", (len(data),), "fedprune.bytes", _bytes(data, copies))
        for name, data in packet.buffers.items()
    }
    fields = ConfigRecord(dict(packet.fields))
    return RecordDict({"fields": fields, "buffers": ArrayRecord(arrays)})


def _bytes(data: Buffer, copies: Copies) -> bytes:
    if isinstance(data, bytes):
        return data
    if id(data) not in copies:
        copies[id(data)] = data, bytes(data)
    return copies[id(data)][1]


def packet_in(message: Message) -> Packet:
    """The packet in a message; whatever it raises, the message holds none."""
    content = message.content
    buffers = {name: array.data for name, array in content.array_records["buffers"].items()}
    return Packet(dict(content.config_records["fields"]), buffers)


def let_go(message: Message) -> None:
    """Take out of a message the arrays that it holds, once they are elsewhere.

    Flower's records refer to themselves: who waits for Python to find that out keeps whole models.
    """
    if message.has_content():
        for record in message.content.array_records.values():
            record.clear()
