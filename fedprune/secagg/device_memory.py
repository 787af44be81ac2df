"""What a device remembers of a secure sum: its seed, until the sum is opened, and what it said.

A worker of a simulation remembers nothing, see `fedprune.secagg.client_stages`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.protocol.questions import HELD
from fedprune.secagg.messages import (
    Call,
    Reply,
    call_packet,
    reply_packet,
)


@dataclass(frozen=True)
class Memory:
    """Of the newest sum alone.

    Attributes:
        session: its name.
        seed: 32 secret bytes; b"" once the sum was opened.
        asked: a digest of what was answered with a masked vector; b"" before.
        confirmed: a digest of the request to confirm who is in the sum; b"" before.
        opened: a digest of the request to unmask; b"" before.
        about: the reply to it, to be repeated.
        shares: what went along with it.
    """

    session: bytes
    seed: bytes
    asked: bytes = b""
    confirmed: bytes = b""
    opened: bytes = b""
    about: str = ""
    shares: bytes = b""


Serve = Callable[[bytes], Reply]
"""Serves a stage with a seed."""


def recalled(
    memory: Memory | None, call: Call, packet: Packet | None, serve: Serve
) -> tuple[Memory, Packet]:
    """A stage served by a device, and what it remembers after it.

    What is asked a second time is answered as the first time: the reply was lost. In a session a
    device masks one vector, confirms one set of clients, and opens one sum; the seed is gone after
    that.

    Raises:
        Refused: another session than that of the keys, or a second, different request in it.
    """
    if call.stage == "keys":
        known = memory is not None and memory.session == call.session and memory.seed
        memory = memory if known else Memory(call.session, os.urandom(32))
        assert memory is not None
        return memory, reply_packet(serve(memory.seed))
    if memory is None or memory.session != call.session:
        raise Refused("secure", "a sum that this device showed no keys for, or an earlier one")
    digest = _digest(call, packet)
    if call.stage == "unmask":
        return _opened(memory, digest, serve)
    if not memory.seed:
        raise Refused("secure", "the sum is open already")
    if call.stage == "masked":
        _same(memory.asked, digest)
        memory = replace(memory, asked=digest)
    if call.stage == "confirm":
        if not memory.asked:
            raise Refused("secure", "a sum that this device gave nothing to")
        _same(memory.confirmed, digest)
        memory = replace(memory, confirmed=digest)
    return memory, reply_packet(serve(memory.seed))


def _opened(memory: Memory, digest: bytes, serve: Serve) -> tuple[Memory, Packet]:
    _same(memory.opened, digest)
    if memory.opened:
        return memory, Packet({"about": memory.about}, {"shares": memory.shares})
    if not memory.confirmed:
        raise Refused("secure", "a sum that this device gave nothing to, or did not confirm")
    reply = reply_packet(serve(memory.seed))
    if "shares" not in reply.buffers:  # it refused, and has said nothing
        return memory, reply
    about, shares = str(reply.fields["about"]), bytes(reply["shares"])
    return replace(memory, seed=b"", opened=digest, about=about, shares=shares), reply


def _same(earlier: bytes, digest: bytes) -> None:
    if earlier not in (b"", digest):
        raise Refused("secure", "a second, different request in one session")


def _digest(call: Call, packet: Packet | None) -> bytes:
    sha = hashlib.sha256()
    said = call_packet(call)
    parts = [*map(str, said.fields.values()), *said.buffers]
    data: list[Buffer] = [*said.buffers.values()]
    if packet is not None:
        data += [packet.head, *(packet[n] for n in sorted(packet.buffers) if n not in HELD)]
    for part in [*(text.encode() for text in parts), *data]:
        sha.update(f"{len(part)}|".encode())
        sha.update(part)
    return sha.digest()
