"""Packets as Flower's messages: the fields as a ConfigRecord, each buffer as an Array of bytes.

A large buffer is cut into pieces, ConfigRecords of bytes. Flower puts an Array together from its
chunks while all of both are there; of a ConfigRecord it lets go of what came before it reads the
next one, and the receiver of each piece as soon as its bytes are where they belong. The sender's
pieces have no bytes of their own: they are copied out of the packet when Flower sends them.
"""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import Packet
from fedprune.runtime.process import trim_memory

PIECE = 2**22
"""Bytes of an Array at most, and of a piece of a larger buffer."""

_NUMBERED = "/"
"""Between the name of a buffer and the number of a piece."""

_BYTES = "bytes"
"""What a piece calls its content."""

Copies = dict[int, tuple[Buffer, bytes]]
"""Buffers and their bytes, by the buffer's `id`."""


def records(packet: Packet, copies: Copies | None = None) -> RecordDict:
    """A packet as the content of a message.

    Args:
        packet: what is sent.
        copies: for an engine that moves whole buffers itself: one that many packets share is
            copied once, and kept there. None: large buffers in pieces, small ones in the packet's
            own memory, for a message that is sent before that changes.
    """
    arrays, pieces = ArrayRecord(), dict[str, ConfigRecord]()
    for name, data in packet.buffers.items():
        if copies is not None:
            arrays[name] = _array(_copy(data, copies))
        elif len(data) <= PIECE:
            arrays[name] = _array(data)
        else:
            view = memoryview(data)
            for i, start in enumerate(range(0, len(data), PIECE)):
                pieces[f"{name}{_NUMBERED}{i}"] = _Piece(view[start : start + PIECE])
    fields = ConfigRecord(dict(packet.fields))
    return RecordDict({"fields": fields, "buffers": arrays, **pieces})


class _Piece(ConfigRecord):
    """A ConfigRecord of bytes that lie elsewhere until it is sent.

    Flower asks for what it sends over a network by `deflate` alone, several times; its simulation
    pickles. Who asks for an item of it finds none.
    """

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data = data

    def deflate(self) -> bytes:
        """What Flower sends for it: that of a ConfigRecord which holds the bytes."""
        return self._plain().deflate()

    def count_bytes(self) -> int:
        """Bytes of a ConfigRecord which holds the bytes."""
        return self._plain().count_bytes()

    def __reduce__(self) -> tuple[type[ConfigRecord], tuple[dict[str, bytes]]]:
        """As a ConfigRecord which holds the bytes."""
        return ConfigRecord, ({_BYTES: bytes(self._data)},)

    def _plain(self) -> ConfigRecord:
        return ConfigRecord({_BYTES: bytes(self._data)})

    def clear(self) -> None:
        """Let go of the bytes."""
        self._data = memoryview(b"")


def _copy(data: Buffer, copies: Copies) -> bytes:
    if isinstance(data, bytes):
        return data
    if id(data) not in copies:
        copies[id(data)] = data, bytes(data)
    return copies[id(data)][1]


def _array(data: Buffer) -> Array:
    """An Array over these bytes; Flower's takes a copy of them alone, and reads any buffer."""
    array = Array("uint8", (len(data),), "fedprune.bytes", b"")
    array.data = data  # type: ignore[assignment]
    return array


def packet_in(message: Message) -> Packet:
    """The packet in a message, whose buffers are taken out of it.

    Flower's records refer to themselves: who waits for Python to find that out keeps whole models.
    Whatever this raises, the message holds no packet.
    """
    content, parts = message.content, dict[str, int]()
    for part in content.config_records:
        name, numbered, _ = part.rpartition(_NUMBERED)
        if numbered:
            parts[name] = parts.get(name, 0) + 1
    record = content.array_records["buffers"]
    buffers: dict[str, Buffer] = {name: record.pop(name).data for name in list(record)}
    buffers |= {name: _joined(content, name, count) for name, count in parts.items()}
    return Packet(dict(content.config_records["fields"]), buffers)


def _joined(content: RecordDict, name: str, count: int) -> Buffer:
    """The bytes of a buffer, whose pieces are taken out of a message's content."""
    pieces = [content.config_records[f"{name}{_NUMBERED}{i}"] for i in range(count)]
    # Memory that nobody has written to takes none: it grows as the pieces go.
    whole = np.empty(sum(len(_bytes_in(piece)) for piece in pieces), np.uint8).data
    at = 0
    for piece in pieces:
        data = _bytes_in(piece)
        piece.clear()
        whole[at : at + len(data)] = data
        at += len(data)
        del data
    trim_memory(at // 4)  # the pieces came in memory of Flower's threads, which keep it
    return whole.toreadonly()


def _bytes_in(piece: ConfigRecord) -> bytes:
    data = piece[_BYTES]
    if not isinstance(data, bytes):
        raise TypeError(f"a piece of type {type(data).__name__}")
    return data


def let_go(message: Message) -> None:
    """Take out of a message what it holds, once that is elsewhere."""
    if message.has_content():
        for record in message.content.values():
            record.clear()
