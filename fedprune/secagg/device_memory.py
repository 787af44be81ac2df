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
from fedprune.protocol.letters import Letter
from fedprune.secagg.messages import (
    Call,
    Reply,
    call_letter,
    reply_letter,
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
) -> tuple[Memory, Letter]:
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
        return memory, reply_letter(serve(memory.seed))
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
    return memory, reply_letter(serve(memory.seed))


def _opened(memory: Memory, digest: bytes, serve: Serve) -> tuple[Memory, Letter]:
    _same(memory.opened, digest)
    if memory.opened:
        return memory, Letter({"about": memory.about}, {"shares": memory.shares})
    if not memory.confirmed:
        raise Refused("secure", "a sum that this device gave nothing to, or did not confirm")
    letter = reply_letter(serve(memory.seed))
    if "shares" not in letter.buffers:  # it refused, and has said nothing
        return memory, letter
    about, shares = str(letter.fields["about"]), letter.buffers["shares"]
    return replace(memory, seed=b"", opened=digest, about=about, shares=shares), letter


def _same(earlier: bytes, digest: bytes) -> None:
    if earlier not in (b"", digest):
        raise Refused("secure", "a second, different request in one session")


def _digest(call: Call, packet: Packet | None) -> bytes:
    sha = hashlib.sha256()
    letter = call_letter(call)
    parts = [*map(str, letter.fields.values()), *letter.buffers]
    data: list[Buffer] = [*letter.buffers.values()]
    if packet is not None:
        data += [packet.head, packet.values, packet.more, packet.rungs]
    for part in [*(text.encode() for text in parts), *data]:
        sha.update(f"{len(part)}|".encode())
        sha.update(part)
    return sha.digest()
