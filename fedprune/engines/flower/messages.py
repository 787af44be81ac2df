"""Packets as Flower's messages: the fields as a ConfigRecord, each buffer as an Array of bytes."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedprune.codec.wire import Packet


def records(packet: Packet) -> RecordDict:
    """A packet as the content of a message."""
    arrays = {
        name: Array("uint8", (len(data),), "fedprune.bytes", bytes(data))
        for name, data in packet.buffers.items()
    }
    fields = ConfigRecord(dict(packet.fields))
    return RecordDict({"fields": fields, "buffers": ArrayRecord(arrays)})


def packet_in(message: Message) -> Packet:
    """The packet in a message; whatever it raises, the message holds none."""
    content = message.content
    buffers = {name: array.data for name, array in content.array_records["buffers"].items()}
    return Packet(dict(content.config_records["fields"]), buffers)
